"""The page of MLflow that compares a study's rows: where it is, and how it opens.

How it opens is a tag of the experiment, as MLflow 3's own "share view" writes it.
"""

import json
from collections.abc import Iterable

__all__ = ["VIEW_TAG", "page", "view"]

_VIEW = "study"
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
"""The experiment's tag that holds `view`."""


def page(experiment: str) -> str:
    """Path and fragment of an experiment's page, behind the server's URL."""
    return (
        f"/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={_VIEW}"
    )


def view(metrics: Iterable[str]) -> str:
    """The state of the page: one group a row of the study, its metrics as columns."""
    columns = [f"metrics.`{name}`" for name in metrics]
    return json.dumps(
        {
            "searchFilter": "",
            "orderByKey": "attributes.start_time",
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "columnOrder": columns,
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": "row"}],
            },
            "runsExpanded": {},
            "groupsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runsHiddenMode": "FIRST_10_RUNS",
            "viewMaximized": True,
            "runListHidden": False,
            "isAccordionReordered": False,
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "globalLineChartConfig": None,
            "chartsSearchFilter": "",
            "autoRefreshEnabled": True,
        }
    )
