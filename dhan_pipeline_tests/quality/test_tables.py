from dhan_pipeline.quality.tables import table


def test_a_table_has_its_numbers_to_the_right_and_no_word_breaks_it() -> None:
    assert table(("name", "count"), [("a | b\nc", 1)], numbers=("count",)).splitlines() == [
        "| name | count |",
        "|---|---:|",
        r"| a \| b c | 1 |",
    ]
