"""The fields of Ray's objects that our files use or may use, as KubeRay 1.7 has them.

Written by hand from KubeRay's reference of its API (v1.7.0, `ray.io/v1`), for no package ships its
schema. Pod templates are Kubernetes' own, and are checked as such.
"""

from typing import Any

__all__ = ["RAY_CLUSTER", "RAY_JOB"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_ANY: Schema = {"type": "object"}


def _one_of(*words: str) -> Schema:
    return {"enum": [*words]}


def _fields(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": [*required],
        "additionalProperties": False,
    }


_METADATA = _fields(
    name=_TEXT, generateName=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS
)
_STORAGE = _fields(
    claimName=_TEXT,
    size=_TEXT,
    storageClassName=_TEXT,
    accessModes={"type": "array", "items": _TEXT},
    subPath=_TEXT,
    deletionPolicy=_one_of("DeleteWithCluster", "Retain"),
)
_GROUP = {"template": _ANY, "rayStartParams": _TEXTS, "resources": _TEXTS, "labels": _TEXTS}
_HEAD = _fields(("template",), **_GROUP, serviceType=_TEXT, headService=_ANY, enableIngress=_FLAG)
_WORKERS = _fields(
    ("template", "groupName"),
    **_GROUP,
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    idleTimeoutSeconds=_COUNT,
    priority={"type": "integer"},
    suspend=_FLAG,
)
_CLUSTER = _fields(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    authOptions=_fields(mode=_one_of("disabled", "token"), secretName=_TEXT),
    gcsFaultToleranceOptions=_fields(
        backend=_one_of("redis", "rocksdb"), storage=_STORAGE, redisAddress=_TEXT
    ),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    enableInTreeAutoscaling=_FLAG,
    suspend=_FLAG,
)
_JOB = _fields(
    ("entrypoint",),
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=_COUNT,
    activeDeadlineSeconds=_COUNT,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    submitterPodTemplate=_ANY,
    submitterConfig=_fields(backoffLimit=_COUNT),
    rayClusterSpec=_CLUSTER,
    metadata=_TEXTS,
    suspend=_FLAG,
)


def _object(kind: str, spec: Schema) -> Schema:
    names = ("apiVersion", "kind", "metadata", "spec")
    return _fields(
        names,
        apiVersion=_one_of("ray.io/v1"),
        kind=_one_of(kind),
        metadata=_METADATA,
        spec=spec,
    )


RAY_CLUSTER, RAY_JOB = _object("RayCluster", _CLUSTER), _object("RayJob", _JOB)
