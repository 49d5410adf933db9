"""Every format of files, read row by row, and bad rows, which cost only themselves."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibethinker.data.readers import Bad, files_of, parse, read_rows
from vibethinker.errors import DataError

ROWS = [{"problem": f"Find {i}.", "answer": str(i)} for i in range(150)]


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


WRITERS = {
    "rows.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "rows.JSONL.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "lines.json": lambda path, rows: path.write_bytes(lines(rows)),
    "rows.csv": write_csv,
    "rows.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "rows.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
    "rows.arrow": lambda path, rows: arrow(path, rows, pa.ipc.new_stream),
    "rows.feather": lambda path, rows: arrow(path, rows, pa.ipc.new_file),
}


def arrow(path, rows, new):
    table = pa.Table.from_pylist(rows)
    with new(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows_in_order(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    found = list(read_rows(tmp_path / name))
    assert [row for _, row in found] == ROWS
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers)) and numbers[0] in (1, 2)


def test_what_the_package_datasets_saves_is_read_and_what_it_says_about_it_is_not(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "several")
    assert (tmp_path / "one" / "state.json").is_file() and (tmp_path / "several" / "dataset_dict.json").is_file()
    for folder in ("one", "several"):
        assert [row for file in files_of(tmp_path / folder) for _, row in read_rows(file)] == ROWS


def test_a_folder_is_its_data_files_in_order_of_names(tmp_path):
    for name in ("b.jsonl", "a.parquet", "notes.txt", "c/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in files_of(tmp_path)] == ["a.parquet", "b.jsonl", "d.csv"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data file: put one JSON object a line in a \.jsonl file"):
        files_of(tmp_path / "empty")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"problem": "p", "answer": "1"', "JSON"),
        (b"[1, 2]", "object"),
        (b'{"answer": NaN}', "NaN"),
        (b'{"answer": 1e999}', "too big"),
        (b'{"problem": "\\ud800"}', "surrogates"),
        (b'{"problem": "caf\xe9"}', "UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b"\0\0", "JSON"),
        (b'{"problem": "' + b"x" * (1 << 20) + b'"}', "longer than 1 MiB"),
    ],
)
def test_a_bad_line_costs_only_itself(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"problem": "first"}\n\n' + line + b'\n{"problem": "last"}')
    (first, bad, last) = read_rows(path, max_row=1 << 20)
    assert (first, last) == ((1, {"problem": "first"}), (4, {"problem": "last"}))
    assert bad[0] == 3 and isinstance(bad[1], Bad) and said in bad[1].reason
    assert len(bad[1].excerpt) <= 2000


def test_bad_rows_of_csv_are_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'problem,answer\na,1\nb\nc,3,4\n"d\nd",4\ne\xe9,5\nlast,6\n')
    found = list(read_rows(path))
    assert [row for _, row in found if isinstance(row, dict)] == [
        {"problem": "a", "answer": "1"},
        {"problem": "d\nd", "answer": "4"},
        {"problem": "last", "answer": "6"},
    ]
    assert [(number, row.reason) for number, row in found if isinstance(row, Bad)] == [
        (3, "1 fields instead of 2"),
        (4, "3 fields instead of 2"),
        (7, "not UTF-8 (surrogates not allowed)"),
    ]


@pytest.mark.parametrize("content", [b"pro\xe9blem,answer\na,1\n", b'"problem"x,answer\na,1\n'])
def test_a_header_of_csv_that_can_not_be_read_is_not_replaced_by_the_next_row(tmp_path, content):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"first row of .*rows\.csv must name the columns and can't be read"):
        list(read_rows(tmp_path / "rows.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.parquet", "rows.arrow"])
def test_a_row_that_is_too_long_as_a_whole_costs_only_itself(tmp_path, name):
    rows = [{"problem": "é" * n, "answer": "1" * n} for n in (1, 1 << 19, 2)]
    WRITERS[name](tmp_path / name, rows)
    first, long, last = (row for _, row in read_rows(tmp_path / name, max_row=1 << 20))
    assert (first, last) == (rows[0], rows[2])
    assert isinstance(long, Bad) and long.reason == "longer than 1 MiB (`max_row`)"


def test_items_of_a_json_array_that_would_do_as_no_line_of_json_are_bad(tmp_path):
    (tmp_path / "rows.json").write_text('[{"problem": "p"}, 7, {"problem": ' + "[" * 9000 + "]" * 9000 + "}]")
    fine, number, deep = (row for _, row in read_rows(tmp_path / "rows.json"))
    assert fine == {"problem": "p"}
    assert number.reason == "not a JSON object" and "not JSON in UTF-8 (maximum recursion depth" in deep.reason


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_bad_rows_of_columns_are_named_and_big_ones_are_not_read(tmp_path, name):
    values = [b"fine", b"caf\xe9", b"x" * (2 << 20), b"last"]
    schema = pa.schema([("problem", pa.string())])
    column = pa.array(values, pa.binary()).cast(pa.binary()).view(pa.string())
    table = pa.table([column], schema=schema)
    if name == "rows.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_stream(tmp_path / name, schema) as writer:
            writer.write_table(table)
    found = dict(read_rows(tmp_path / name, max_row=1 << 20))
    assert found[1] == {"problem": "fine"} and found[4] == {"problem": "last"}
    assert "can't be read" in found[2].reason and "longer than 1 MiB" in found[3].reason


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, r"can't be read \(No such file.*correct the path.*put one JSON object a line"),
        ("rows.txt", b"x", "of no known format"),
        ("rows.parquet", b"PAR1 PAR1", "isn't whole Parquet"),
        ("rows.arrow", b"ARROW1", "isn't whole Arrow"),
        ("rows.json", b'[{"a": 1}, {"a"', "isn't valid JSON after row 1"),
        ("rows.json", b"7", "neither a JSON array nor JSON lines"),
        ("rows.jsonl.gz", b"not gzip", "is damaged"),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS))[:-20], "ends too early"),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS))[:60] + b"\xff" * 200, "is damaged"),
    ],
)
def test_a_file_that_can_not_be_read_is_named_with_what_to_do(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_rows(tmp_path / name))


@given(st.binary(max_size=200))
def test_no_line_raises(line):
    assert isinstance(parse(line), (dict, Bad))


_DAMAGE = """
import random, sys
from pathlib import Path
from vibethinker.data.readers import read_rows
from vibethinker.errors import DataError

whole, damaged = Path(sys.argv[1]).read_bytes(), Path(sys.argv[1]).with_stem("damaged")
for seed in range(400):
    choose, content = random.Random(seed), bytearray(whole)
    for _ in range(choose.choice((1, 2, 8))):
        content[choose.randrange(len(content))] = choose.choice((0, 127, 128, 255, choose.randrange(256)))
    damaged.write_bytes(content)
    try:
        list(read_rows(damaged))
    except DataError:
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.arrow", "rows.feather", "rows.parquet"])
def test_damage_anywhere_in_a_column_file_is_no_traceback_and_no_end_of_the_process(tmp_path, name):
    rows = [{**row, "chat": [{"role": "user", "content": "x" * (i % 7)}], "n": i} for i, row in enumerate(ROWS)]
    WRITERS[name](tmp_path / name, rows)
    ended = subprocess.run([sys.executable, "-c", _DAMAGE, tmp_path / name], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
