"""The command `statebroker tables`."""

from __future__ import annotations

from broker import Producer
from tests.processes.conftest import NewServed


def test_tables_are_listed_and_printed_as_they_were_written(new_served: NewServed) -> None:
    """Every kind is listed with its size; one prints key, value and timestamp; absent ones fail."""
    place = new_served()
    with Producer(place.url, namespace=place.namespace) as producer:
        prices = producer.table("price")
        prices.set_many(["b", "a", "gone"], [2.5, float("nan"), 0], timestamps=[20, 10, 5])
        prices.delete("gone")
        producer.table("price", values=int).set("a", 7)
        producer.table("gauge", keys=int, values=int).set(2**64 - 1, -(2**63))
        producer.flush(10)
    place.publish()

    assert place.run("tables").out.splitlines() == [
        "gauge\tu64-i64\t1 keys",
        "price\tstr-f64\t2 keys",
        "price\tstr-i64\t1 keys",
    ]
    assert place.run("tables", "--json").json[0] == {"name": "gauge", "kind": "u64-i64", "keys": 1}
    assert place.run("tables", "gauge").out == f"{2**64 - 1}\t{-(2**63)}\t0\n"
    assert place.run("tables", "price", "--kind", "str-f64").out.splitlines() == [
        'a\t"NaN"\t10',
        "b\t2.5\t20",
    ]
    assert place.run("tables", "price", "b", "--kind", "str-f64", "--json").json == {
        "b": {"value": 2.5, "timestamp": 20}
    }

    ambiguous = place.run("tables", "price")
    assert (ambiguous.code, "str-f64, str-i64" in ambiguous.err) == (2, True)
    absent = place.run("tables", "price", "b", "c", "--kind", "str-f64")
    assert (absent.code, absent.out) == (1, "b\t2.5\t20\n")
    assert "'c' is absent" in absent.err
    assert place.run("tables", "volume").code == 1
