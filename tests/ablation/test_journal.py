import math
import struct
from random import Random

from ablation.journal import Record, metrics_from_json, metrics_to_json, parse_lines, to_lines


def test_journal__floats_come_back_to_the_last_bit():
    random = Random(0)
    values = [struct.unpack("d", random.randbytes(8))[0] for _ in range(2000)]
    values = [v for v in values if not math.isnan(v)] + [0.1, -0.0, 5e-324, 1.7976931348623157e308]
    records = tuple(Record(i, 10**12 + i, {"loss": v}) for i, v in enumerate(values))
    back = parse_lines(to_lines(records))
    assert [struct.pack("d", r.metrics["loss"]) for r in back] == [
        struct.pack("d", v) for v in values
    ]
    assert back == records


def test_journal__holds_what_json_cannot():
    metrics = metrics_from_json(
        metrics_to_json({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 3})
    )
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"], metrics["d"]) == (math.inf, -math.inf, 3.0)
    assert b"NaN" not in to_lines([Record(1, 2, {"a": math.nan})])


def test_journal__of_nothing_is_empty():
    assert to_lines([]) == b""
    assert parse_lines(b"") == ()
