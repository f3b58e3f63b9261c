"""The rows of a source's parquet shards, one after the other, in the raw columns.

    for place, table in tables(source, (0, 0), folder, on_bytes=print):
        ...   # `place` is where a later call goes on

`datasets` 5.2 reads a row group whole before it gives the first row: of a shard that pandas wrote
that is all of it. `ParquetFile.iter_batches` reads page by page.
"""

import shutil
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
from huggingface_hub import hf_hub_url

from helpers.pairs.images import PreferenceDataError
from helpers.pairs.rawform import RAW, raw_table, to_read
from helpers.setup.hub import BLOCK, RemoteFile, ask_range, drop_blocks, first_line

TURN = 64  # rows of a table


def finished(folder, place):
    """Remove what is left of the shards before a place, once every row of them is kept."""
    for shard in range(place[0]):
        shutil.rmtree(folder / str(shard), ignore_errors=True)


def tables(source, place, folder, on_bytes):
    """((file, row) to go on from, a table of up to TURN rows), from a place on to the end.

    folder: for the blocks of the shard that is being read; on_bytes: called with the number of
    bytes that came over the network. Raises PreferenceDataError naming the shard.
    """
    start, row = place
    for number in range(start, len(source.files)):
        blocks = folder / str(number)
        where = f"{source.files[number][0]} of {source.name}"
        with _sound(where, blocks), _open(source, number, where, blocks, on_bytes) as file:
            parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK)
            columns = to_read(parquet.schema_arrow.names, where)
            if parquet.metadata.num_rows == 0:
                yield (number + 1, 0), RAW.arrow_schema.empty_table()  # the place moves on
            for after, batch in _batches(parquet, columns, row, blocks):
                done = after == parquet.metadata.num_rows
                yield ((number + 1, 0) if done else (number, after)), raw_table(batch, where)
        row = 0


@contextmanager
def _sound(where, blocks):
    try:
        yield
    except PreferenceDataError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        shutil.rmtree(blocks, ignore_errors=True)  # or the next call would read the damage again
        raise PreferenceDataError(
            f"{where} is damaged, or not parquet ({first_line(error)}): run this again to "
            "fetch it anew; if it stays so, choose another dataset"
        ) from None


def _open(source, number, where, blocks, on_bytes):
    path, size = source.files[number]
    if Path(path).is_absolute():
        return open(path, "rb")
    url = hf_hub_url(source.name, path, repo_type="dataset", revision=source.revision)
    ask_bytes = partial(ask_range, url, where)
    return RemoteFile(ask_bytes, size, blocks, on_bytes)


def _batches(parquet, columns, start, blocks):
    """(row after the batch, a batch of up to TURN rows), from row `start` of a shard on.

    One row group after the other: when one is done, its blocks are no longer needed. Without
    threads: pyarrow's would outlive a reader that is stopped early.
    """
    after = 0
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        if after + group.num_rows <= start:
            after += group.num_rows
            continue
        drop_blocks(blocks, _first_byte(group))
        for batch in parquet.iter_batches(TURN, [number], columns, use_threads=False):
            after += len(batch)
            if after > start:
                yield after, batch.slice(max(0, len(batch) - (after - start)))


def _first_byte(group):
    columns = [group.column(i) for i in range(group.num_columns)]
    return min(column.dictionary_page_offset or column.data_page_offset for column in columns)
