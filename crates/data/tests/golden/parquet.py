"""Writes the files of parquet/ as pyarrow (26.0.1 made them) does. Run it with pyarrow installed: python parquet.py"""

import pathlib

import pyarrow
import pyarrow.parquet

HERE = pathlib.Path(__file__).parent / "parquet"


def write(name, columns, **options):
    pyarrow.parquet.write_table(pyarrow.table(columns), HERE / name, store_schema=False, **options)


def main():
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), ("name", pyarrow.string())])
    chats = [
        [{"role": "user", "content": "a mat"}, {"role": "assistant", "content": "the cat"}],
        [{"role": "system", "content": "été"}, {"role": "user", "content": "", "name": "a"}, {"role": "assistant", "content": "sat"}],
        [{"role": "assistant", "content": "on"}],
    ]
    write("chats.parquet", {"messages": pyarrow.array(chats, pyarrow.list_(message))})
    tokens = {"input_ids": pyarrow.array([[3, 4], [5, 6, 7], [8]], pyarrow.list_(pyarrow.int32())),
              "labels": pyarrow.array([[-100, 4], [5, -100, 7], [8]], pyarrow.list_(pyarrow.int64()))}
    write("tokens.parquet", tokens, compression="gzip", row_group_size=2)
    write("texts.parquet", {"text": ["the cat", "", "a mat"] * 400}, row_group_size=500)
    write("choices.parquet", {"prompt": ["a"], "completion": ["cat"], "choices": [["cat", "mat"]], "answer": [0]})
    write("number.parquet", {"text": [3, 4]})
    write("null.parquet", {"text": pyarrow.array(["the cat", None])})
    write("time.parquet", {"text": ["a"], "when": pyarrow.array([1], pyarrow.timestamp("us"))})
    write("empty.parquet", {"text": pyarrow.array([], pyarrow.string())})
    write("zstd.parquet", {"text": ["the cat"]}, compression="zstd")


if __name__ == "__main__":
    main()
