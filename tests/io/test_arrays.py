"""Reading, checking, preparing and writing arrays. Every file is made here, small, in a temporary folder."""

import errno
import gzip
import hashlib
import io
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from lnz._core import files
from lnz.io import DataError, WriteError, binarise, check, digits, load, save_samples, split, write_atomic

BITS = np.asarray([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], np.uint8)
GREY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def idx_bytes(array, *, shape=None, magic=None):
    codes = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}
    shape = array.shape if shape is None else shape
    head = bytes([0, 0, codes[array.dtype.name], len(shape)]) if magic is None else magic
    body = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return head + struct.pack(f">{len(shape)}I", *shape) + body


def npy_bytes(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy_header(shape, dtype="<f8"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def parquet(path, *, group=15, **columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)


def image(path, array, **options):
    from PIL import Image

    Image.fromarray(np.asarray(array)).save(path, **options)


def refusal(action, *args, **options):
    """The message of a refusal: always one line that says a cause and a remedy."""
    with pytest.raises(DataError) as caught:
        action(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " in message, "no remedy"
    return message


class TestLoad:
    @pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float16", "float32", ">f8", ">i4"])
    def test_npy(self, tmp_path, dtype):
        array = (np.arange(12) % 7).astype(dtype).reshape(4, 3)
        np.save(tmp_path / "x.npy", array)
        data = load(tmp_path / "x.npy")
        assert data.array.dtype.isnative
        assert data.array.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(data.array, array)
        assert data.source == str(tmp_path / "x.npy")
        assert data.image_shape is None
        assert data.labels is None

    def test_npy_in_fortran_order_and_of_three_axes(self, tmp_path):
        np.save(tmp_path / "x.npy", np.asfortranarray(GREY))
        data = load(str(tmp_path / "x.npy"))
        np.testing.assert_array_equal(data.array, GREY)
        assert data.array.flags.c_contiguous
        assert data.image_shape == (3, 4)
        np.testing.assert_array_equal(data.rows, GREY.reshape(2, 12))
        assert np.shares_memory(data.rows, data.array)
        assert repr(data) == f"Data(2 x 3 x 4 uint8 from {data.source}, image_shape=(3, 4))"

    def test_npz_picks_the_array(self, tmp_path):
        path = tmp_path / "x.npz"
        np.savez(path, weights=GREY[0])
        np.testing.assert_array_equal(load(path).array, GREY[0])  # the only one
        np.savez(path, weights=GREY[0], X=BITS)
        np.testing.assert_array_equal(load(path).array, BITS)  # a usual name
        np.savez(path, weights=GREY[0], X=GREY[0], images=BITS)
        np.testing.assert_array_equal(load(path).array, BITS)  # the first of them
        np.testing.assert_array_equal(load(path, name="weights").array, GREY[0])  # the one that was asked for

    def test_npz_as_mnist(self, tmp_path):
        images = np.random.RandomState(0).randint(0, 256, (5, 784)).astype(np.uint8)
        path = tmp_path / "mnist.npz"
        np.savez_compressed(path, images=images, labels=np.arange(5))
        data = load(path)
        np.testing.assert_array_equal(data.array, images)
        np.testing.assert_array_equal(data.labels, np.arange(5))
        assert data.array.dtype == np.uint8
        assert data.image_shape == (28, 28)

    def test_npz_labels(self, tmp_path):
        path = tmp_path / "x.npz"
        np.savez(path, foo=BITS, labels=np.asarray(["a", "b", "c", "d"]))
        assert list(load(path).labels) == ["a", "b", "c", "d"]
        np.savez(path, foo=BITS, labels=np.arange(9))
        assert "'labels' has shape (9,), but 'foo' holds 4 rows" in refusal(load, path)
        assert load(path, name="foo").labels is None  # asked for by name, so the labels may be another array's

    @pytest.mark.parametrize("ending", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx", ".idx.gz"])
    def test_idx(self, tmp_path, ending):
        path, content = tmp_path / f"train-images{ending}", idx_bytes(GREY)
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
        data = load(path)
        np.testing.assert_array_equal(data.array, GREY)
        assert data.image_shape == (3, 4)

    @pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
    def test_idx_of_other_types(self, tmp_path, dtype):
        array = np.asarray([[-3, 5, 100], [7, 0, -1]], dtype)
        (tmp_path / "x.idx").write_bytes(idx_bytes(array))
        data = load(tmp_path / "x.idx")
        assert data.array.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(data.array, array)

    @pytest.mark.parametrize(
        ("text", "array", "dtype"),
        [
            ("0,1\n1,0\n", [[0, 1], [1, 0]], "uint8"),
            ("a,b\n0,255\n1,0", [[0, 255], [1, 0]], "uint8"),
            ("1,-1\n-1,1\n", [[1, -1], [-1, 1]], "int64"),
            ("0,256\r\n1,0\r\n", [[0, 256], [1, 0]], "int64"),
            ('"x 1","x,2"\n"0.5", 1e3\n', [[0.5, 1000]], "float64"),
            ("\ufeffx\n0.25\n1\n\n\n", [[0.25], [1]], "float64"),
            (",".join(map(str, range(8))) + "\n1,0,1,0,1,0,1,0\n", [[1, 0, 1, 0, 1, 0, 1, 0]], "uint8"),
            ("0,1,2\n2,1,0\n", [[0, 1, 2], [2, 1, 0]], "uint8"),
            ("9007199254740993,0\n", [[9007199254740992.0, 0]], "int64"),
            ("9007199254740996,0\n", [[9007199254740996.0, 0]], "float64"),
        ],
    )
    def test_csv(self, tmp_path, text, array, dtype):
        path = tmp_path / "x.csv"
        path.write_bytes(text.encode())
        data = load(path)
        np.testing.assert_array_equal(data.array, np.asarray(array))
        assert data.array.dtype == np.dtype(dtype)

    def test_csv_keeps_nan_for_check(self, tmp_path):
        (tmp_path / "x.csv").write_text("1,nan\n2,3\n")
        array = load(tmp_path / "x.csv").array
        assert refusal(check, array, "real").startswith("data: row 1, column 2 is nan, not a finite number")

    @pytest.mark.parametrize("header", ["label,0,1,2", "Label,a,b,c", "\ufefflabel,a,b,c"])
    def test_csv_labels(self, tmp_path, header):
        (tmp_path / "x.csv").write_text(f"{header}\n7,0,1,2\n8,3,4,5\n", encoding="utf-8")
        data = load(tmp_path / "x.csv")
        np.testing.assert_array_equal(data.array, [[0, 1, 2], [3, 4, 5]])
        np.testing.assert_array_equal(data.labels, [7, 8])

    def test_tsv(self, tmp_path):
        (tmp_path / "x.tsv").write_text("a\tb\n0\t1\n1\t0\n")
        np.testing.assert_array_equal(load(tmp_path / "x.tsv").array, [[0, 1], [1, 0]])

    def test_csv_in_many_blocks(self, tmp_path, monkeypatch):
        """Blocks of different types come together, and lines are counted across them."""
        monkeypatch.setattr("lnz.io._table_files._BLOCK", 20)
        rows = [[i, -i] for i in range(30)] + [[0.5, 1e9]] + [[1, 2]] * 30
        lines = ["u,v"] + [",".join(map(str, row)) for row in rows]
        (tmp_path / "x.csv").write_text("\n".join(lines))
        np.testing.assert_array_equal(load(tmp_path / "x.csv").array, np.asarray(rows))
        lines[45] = "1,two"
        (tmp_path / "x.csv").write_text("\n".join(lines))
        assert "line 46, column 2 ('v') is 'two', not a number" in refusal(load, tmp_path / "x.csv")
        lines[45:48] = ["1"] * 3
        (tmp_path / "x.csv").write_text("\n".join(lines))
        assert "line 46 has 1 cells, but those before it have 2" in refusal(load, tmp_path / "x.csv")
        lines[45] = ""
        (tmp_path / "x.csv").write_text("\n".join(lines))
        assert "line 46 is empty, but lines follow it" in refusal(load, tmp_path / "x.csv")

    def test_parquet(self, tmp_path, monkeypatch):
        monkeypatch.setattr("lnz.io._table_files._BLOCK", 20)  # one column at a time, or two
        numbers = np.arange(20)
        columns = {"a": numbers, "a.b": numbers % 2 == 0, "c": numbers / 4, "__index_level_0__": numbers}
        parquet(tmp_path / "x.parquet", **columns)
        data = load(tmp_path / "x.parquet")
        np.testing.assert_array_equal(data.array, np.stack([numbers, numbers % 2 == 0, numbers / 4], 1))
        assert data.array.dtype == np.float64
        for dtype in ("bool", "int8", "uint16", "int64", "float16", "float32", "float64"):
            parquet(tmp_path / "x.parquet", a=(numbers % 2).astype(dtype), b=(numbers % 2).astype(dtype))
            assert load(tmp_path / "x.parquet").array.dtype == np.dtype(dtype)
        parquet(tmp_path / "y.parquet", p=numbers % 2 == 0, label=numbers)
        data = load(tmp_path / "y.parquet")
        assert data.array.dtype == np.bool_
        np.testing.assert_array_equal(data.labels, numbers)

    def test_folder(self, tmp_path):
        image(tmp_path / "b.png", GREY[1])
        image(tmp_path / "a.bmp", GREY[0])
        image(tmp_path / "c.png", np.stack([GREY[0]] * 3 + [np.full((3, 4), 9, np.uint8)], -1))  # RGBA
        image(tmp_path / "d.png", GREY[0] > 5)  # one bit
        (tmp_path / "notes.txt").write_text("not an image")
        (tmp_path / ".hidden.png").write_bytes(b"not an image")
        (tmp_path / "sub").mkdir()
        data = load(tmp_path)
        np.testing.assert_array_equal(data.array, np.stack([*GREY, GREY[0], 255 * (GREY[0] > 5)]))
        assert data.array.dtype == np.uint8
        assert data.image_shape == (3, 4)

    def test_big_files_take_little_more_than_their_data(self, tmp_path):
        array = np.random.RandomState(0).randint(0, 256, (10_000, 784)).astype(np.uint8)
        np.save(tmp_path / "x.npy", array)
        np.savez(tmp_path / "x.npz", images=array)
        (tmp_path / "x.idx").write_bytes(idx_bytes(array))
        (tmp_path / "x.idx.gz").write_bytes(gzip.compress(idx_bytes(array), 0))
        for name in ("x.npy", "x.npz", "x.idx", "x.idx.gz"):
            tracemalloc.start()
            data = load(tmp_path / name)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            np.testing.assert_array_equal(data.array, array)
            assert peak < 1.9 * array.nbytes, name


GOOD_ARRAY = npy_bytes(BITS)
HUGE = (2**40, 784)

BAD_FILES = {
    "empty npy": ("x.npy", b"", "the file is empty (0 bytes)"),
    "empty csv": ("x.csv", b"", "the file is empty (0 bytes)"),
    "unknown suffix": ("x.mat", b"abc", "unknown suffix '.mat'. Known: .npy, .npz, .csv, .tsv, .parquet"),
    "no suffix": ("data", b"abc", "unknown suffix ''. Known: .npy"),
    "one image": ("x.png", b"abc", "unknown suffix '.png' (for images give the folder that holds them)"),
    "garbage npy": ("x.npy", bytes(range(256)), "its header is not that of a .npy file"),
    "npy magic only": ("x.npy", b"\x93NUMPY\x01\x00", "its header is not that of a .npy file"),
    "npy header garbage": ("x.npy", b"\x93NUMPY\x01\x00\x04\x00((((", "its header is not that of a .npy file"),
    "npy cut short": ("x.npy", GOOD_ARRAY[:-1], "is cut short: shape (4, 3) of uint8 takes 12 bytes, but there are 11"),
    "two npy in one": ("x.npy", GOOD_ARRAY * 2, "goes on after its array"),
    "npy of huge size": ("x.npy", npy_header(HUGE) + b"12345678", "is cut short: shape (1099511627776, 784)"),
    "npy of negative size": ("x.npy", npy_header((-1, 8)), "its header declares the shape (-1, 8)"),
    "npy of 40 axes": ("x.npy", npy_header((1,) * 40, "|u1") + b"1", "its header declares the shape (1, 1"),
    "npy with zero rows": ("x.npy", npy_bytes(np.zeros((0, 5))), "holds no values (shape (0, 5))"),
    "npy with zero columns": ("x.npy", npy_bytes(np.zeros((5, 0))), "holds no values (shape (5, 0))"),
    "npy of one axis": ("x.npy", npy_bytes(np.zeros(5)), "the array has shape (5,), and data need rows and columns"),
    "npy of no axes": ("x.npy", npy_bytes(np.float64(1)), "the array has shape ()"),
    "npy of objects": (
        "x.npy",
        npy_bytes(np.asarray([[1, None]]), allow_pickle=True),
        "holds Python objects, which are",
    ),
    "npy of complex": ("x.npy", npy_bytes(np.zeros((2, 2), complex)), "holds complex numbers"),
    "npy of strings": ("x.npy", npy_bytes(np.asarray([["a", "b"]])), "holds strings"),
    "npy of dates": ("x.npy", npy_bytes(np.zeros((2, 2), "M8[s]")), "holds values of type datetime64[s]"),
    "npy of records": ("x.npy", npy_bytes(np.zeros((2, 2), "u1,f4")), "holds values of type [('f0'"),
    "npz not a zip": ("x.npz", GOOD_ARRAY, "not a whole .npz archive"),
    "npz cut short": ("x.npz", npz_bytes(images=BITS)[:-40], "not a whole .npz archive"),
    "npz without arrays": ("x.npz", b"PK\x05\x06" + bytes(18), "holds no arrays"),
    "npz of objects": ("x.npz", npz_bytes(x=np.asarray([[1, None]])), "array 'x': holds Python objects"),
    "npz of several": ("x.npz", npz_bytes(a=BITS, b=BITS), "holds several arrays, 'a', 'b'. Say which by its name"),
    "idx magic": (
        "x.idx",
        idx_bytes(GREY, magic=b"\0\1\x08\3"),
        r"not an idx file (it starts with b'\x00\x01",
    ),
    "idx type": ("x.idx", idx_bytes(GREY, magic=b"\0\0\x07\3"), "not an idx file"),
    "idx axes": ("x.idx", idx_bytes(GREY, magic=b"\0\0\x08\0"), "not an idx file"),
    "idx header cut": ("x.idx", idx_bytes(GREY)[:9], "is cut short in its header"),
    "idx cut": ("x.idx", idx_bytes(GREY)[:-1], "declares 2 x 3 x 4 values, 40 bytes in all, but the file holds 39"),
    "idx too long": (
        "x.idx",
        idx_bytes(GREY) + b"1",
        "40 bytes in all, but the file holds 41",
    ),
    "idx huge": ("x.idx", idx_bytes(GREY, shape=(2**32 - 1,) * 3), "but the file holds 40"),
    "idx huge, zipped": (
        "x.idx.gz",
        gzip.compress(idx_bytes(GREY, shape=(2**32 - 1,) * 3)),
        "but the file holds at most",
    ),
    "idx zipped and cut": ("x.idx.gz", gzip.compress(idx_bytes(GREY))[:-12], "is cut short"),
    "idx zipped, short inside": ("x.idx.gz", gzip.compress(idx_bytes(GREY)[:-1]), "is cut short"),
    "idx zipped, long inside": (
        "x.idx.gz",
        gzip.compress(idx_bytes(GREY) + b"1"),
        "goes on after the 2 x 3 x 4",
    ),
    "idx not zipped": ("x.idx.gz", idx_bytes(GREY), "not a whole gzip file"),
    "idx labels": ("x-ubyte", idx_bytes(np.arange(9, dtype=np.uint8)), "holds one number per example, such as labels"),
    "idx without rows": (
        "x-ubyte",
        idx_bytes(np.zeros((0, 28, 28), np.uint8)),
        "0 x 28 x 28 values, that is none",
    ),
    "csv header only": ("x.csv", b"a,b\n", "holds no rows below its header"),
    "csv blank": ("x.csv", b"\n\n", "holds no rows"),
    "csv bad cell": ("x.csv", b"a,b\n0,1\n1,abc\n", "line 3, column 2 ('b') is 'abc', not a number"),
    "csv bad cell, no header": ("x.csv", b"0,1\n1,abc\n", "line 2, column 2 is 'abc', not a number"),
    "csv bad cell in line 1": ("x.csv", b"0.5,abc\n1,2\n", "line 1, column 2 is 'abc', not a number"),
    "csv missing value in line 1": ("x.csv", b"NA,1\n0,1\n", "line 1, column 1 is 'NA', not a number"),
    "csv empty cell": ("x.csv", b"a,b\n0,1\n,1\n", "line 3, column 1 ('a') is empty"),
    "csv digits with a line": ("x.csv", b"0,1\n1_0,1\n", "line 2, column 1 is '1_0', not a number"),
    "csv ragged, short": ("x.csv", b"0,1\n0\n1,1\n", "line 2 has 1 cells, but those before it have 2"),
    "csv ragged, long": ("x.csv", b"a,b\n0,1\n0,1,2\n", "line 3 has 3 cells, but those before it have 2"),
    "csv ragged to its header": ("x.csv", b"a,b\n0\n1\n", "line 2 has 1 cells, but those before it have 2"),
    "csv by semicolons": (
        "x.csv",
        b"a;b\n0;1\n",
        "not a number. Replace it by one, or separate the columns by ','",
    ),
    "csv with an index": ("x.csv", b",a,b\n0,1,1\n1,0,1\n", "column 1 has no name, so it looks like a row number"),
    "csv with a gap": ("x.csv", b"a\n0\n\n1\n", "line 3 is empty, but lines follow it"),
    "csv of labels only": ("x.csv", b"label\n0\n1\n", "each of its 2 rows is empty"),
    "csv in latin-1": ("x.csv", b"0,\xe9\n", "is not text in UTF-8"),
    "csv of zeros": ("x.csv", bytes(100), "is not text"),
    "csv with a long cell": ("x.csv", b"0\n" + b"z" * 200_000, "line 2, column 1 is 'zzzzz"),
    "parquet garbage": ("x.parquet", bytes(range(256)), "cannot be read as Parquet"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", BAD_FILES)
    def test_bad_files(self, tmp_path, case):
        name, content, words = BAD_FILES[case]
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.start()
        message = refusal(load, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert message.startswith(str(path))
        assert words in message
        assert len(message) < len(str(path)) + 320
        assert peak < 50e6  # whatever a header declares

    def test_no_such_file(self, tmp_path):
        assert "there is no such file" in refusal(load, tmp_path / "x.npy")
        assert "there is no such file" in refusal(load, tmp_path / "x\n.npy")  # still one line
        assert "File name too long" in refusal(load, tmp_path / f"{'x' * 300}.npy")

    def test_no_permission(self, tmp_path, monkeypatch):
        def refuse(*args, **options):
            raise PermissionError(errno.EACCES, "Permission denied")

        (tmp_path / "x.npy").write_bytes(GOOD_ARRAY)
        monkeypatch.setattr("builtins.open", refuse)
        assert "x.npy: cannot be read (Permission denied)" in refusal(load, tmp_path / "x.npy")

    def test_no_memory(self, tmp_path, monkeypatch):
        def refuse(*args, **options):
            raise MemoryError

        (tmp_path / "x.npy").write_bytes(GOOD_ARRAY)
        monkeypatch.setattr("numpy.empty", refuse)
        assert "x.npy: the data do not fit into memory" in refusal(load, tmp_path / "x.npy")

    def test_not_a_file(self, tmp_path):
        os.mkfifo(tmp_path / "x.npy")
        assert "is not a regular file" in refusal(load, tmp_path / "x.npy")

    def test_npz_names(self, tmp_path):
        np.savez(tmp_path / "x.npz", a=BITS, b=BITS)
        message = refusal(load, tmp_path / "x.npz", name="c")
        assert "holds no array called 'c'. It holds 'a', 'b': name one of these" in message
        np.savez(tmp_path / "y.npz", **{f"a{i}": BITS for i in range(12)})
        assert "'a7' and 4 more. Say which" in refusal(load, tmp_path / "y.npz")
        (tmp_path / "x.npy").write_bytes(GOOD_ARRAY)
        assert "only .npz files hold several arrays" in refusal(load, tmp_path / "x.npy", name="x")

    def test_npz_with_a_damaged_member(self, tmp_path):
        path = tmp_path / "x.npz"
        np.savez(path, images=np.random.RandomState(0).randint(0, 256, (50, 64)).astype(np.uint8))
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
        assert "not a whole .npz archive (Bad CRC-32" in refusal(load, path)

    def test_npz_whose_directory_lies(self, tmp_path):
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", npy_header(HUGE) + b"12345678")
            archive.getinfo("x.npy").file_size = 2**40 * 784 * 8 + 128
        message = refusal(load, path)
        assert "declares a size that the archive cannot hold" in message

    def test_parquet_names_the_column(self, tmp_path):
        path = tmp_path / "x.parquet"
        parquet(path, a=[1, 2], name=["u", "v"])
        assert "column 'name' is of type string, not numeric" in refusal(load, path)
        parquet(path, a=[1, 2], b=[[1], [2]])
        assert "column 'b' is of type list<" in refusal(load, path)
        parquet(path, a=range(20), b=[*range(17), None, 3, None])
        assert "row 18, column 'b' is missing" in refusal(load, path)
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), path)
        assert "column 'a' comes more than once" in refusal(load, path)
        parquet(path, label=[1, 2])
        assert "holds no columns of data" in refusal(load, path)
        parquet(path, a=np.zeros(0))
        assert "holds no rows" in refusal(load, path)
        path.write_bytes(path.read_bytes()[:-9])
        assert "cannot be read as Parquet" in refusal(load, path)

    def test_folders(self, tmp_path, monkeypatch):
        from PIL import Image

        assert "the folder holds no images" in refusal(load, tmp_path)
        grey = np.random.RandomState(0).randint(0, 256, (40, 30)).astype(np.uint8)
        image(tmp_path / "a.png", grey)
        image(tmp_path / "b.png", grey.T)
        message = refusal(load, tmp_path)
        assert message.startswith(f"{tmp_path / 'b.png'} is 40 x 30 pixels, but {tmp_path / 'a.png'} is 30 x 40.")
        for content in (b"", b"not an image", (tmp_path / "a.png").read_bytes()[:-300]):
            (tmp_path / "b.png").write_bytes(content)
            message = refusal(load, tmp_path)
            assert message.startswith(f"{tmp_path / 'b.png'}: cannot be read as an image")
        image(tmp_path / "b.png", grey.astype(np.uint16) * 256)
        assert "b.png: has more than 8 bits per sample (mode I;16)" in refusal(load, tmp_path)
        (tmp_path / "b.png").unlink()
        for most in (1000, 100):  # Pillow warns beyond its limit, and refuses beyond twice as much
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
            assert "a.png: declares more pixels than an image may hold" in refusal(load, tmp_path)

    @pytest.mark.parametrize("seed", range(3))
    def test_damaged_files_are_refused_or_read(self, tmp_path, seed):
        """Any file with a few bytes changed or cut: data or a refusal, and nothing else."""
        random = np.random.RandomState(seed)
        parquet(tmp_path / "good.parquet", a=[1, 2], b=[0.5, 1.0])
        wholes = {
            "x.npy": GOOD_ARRAY,
            "x.npz": npz_bytes(images=BITS, labels=np.arange(4)),
            "x.idx": idx_bytes(GREY),
            "x.idx.gz": gzip.compress(idx_bytes(GREY)),
            "x.csv": b"a,b\n0,1\n1,0.5\n",
            "x.parquet": (tmp_path / "good.parquet").read_bytes(),
        }
        refused = 0
        for name, whole in wholes.items():
            for _ in range(60):
                content = bytearray(whole)
                for _ in range(random.randint(1, 4)):
                    content[random.randint(len(content))] = random.randint(256)
                content = content[: random.randint(1, 2 * len(content))]
                (tmp_path / name).write_bytes(content)
                try:
                    load(tmp_path / name)
                except DataError:
                    refused += 1
        assert refused > 100


class TestCheck:
    def test_good_data(self):
        assert check(BITS, "binary") == []
        assert check(BITS.astype(bool), "binary", columns=3) == []
        assert check(BITS.astype(np.float32), "categorical", cardinality=2) == []
        assert check(BITS * 2.0 - 1, "spin") == []
        assert check(GREY, "categorical") == []
        assert check(np.random.RandomState(0).randn(5, 2, 2), "real", columns=4) == []

    @pytest.mark.parametrize(
        ("array", "space", "options", "words"),
        [
            (np.zeros((0, 3)), "binary", {}, "data: holds no rows. Give at least 2"),
            (np.zeros((3, 0)), "binary", {}, "data: holds no columns"),
            (np.zeros(3), "binary", {}, "data: shape (3,) has no rows and columns"),
            (BITS[:1], "binary", {}, "data: holds one row, and a distribution needs at least 2"),
            (BITS, "binary", {"columns": 4}, "data: the model needs 4 columns, but the data have 3"),
            (GREY, "real", {"columns": 4, "source": "x.npy"}, "x.npy: the model needs 4 columns, but the data have 12"),
            (np.asarray([[0, 1], [0, np.nan]]), "real", {}, "data: row 2, column 2 is nan, not a finite number"),
            (np.asarray([[0, 1], [-np.inf, 1]]), "binary", {}, "data: row 2, column 1 is -inf, not a finite number"),
            (np.full((2, 1, 3), np.inf), "real", {}, "data: row 1, position (1, 1) is inf"),
            (
                np.asarray([[0, 1], [0.5, 1]]),
                "binary",
                {},
                "row 2, column 1 is 0.5, neither 0 nor 1. Binarise it",
            ),
            (GREY, "binary", {}, "data: row 1, position (1, 3) is 2, neither 0 nor 1"),
            (
                BITS * 2.0 - 1,
                "binary",
                {},
                "row 1, column 1 is -1, neither 0 nor 1. These look like spins: map",
            ),
            (BITS, "spin", {}, "row 1, column 1 is 0, neither -1 nor +1. These look like bits: map them by 2 x - 1"),
            (BITS.astype(bool), "spin", {}, "row 1, column 1 is 0, neither -1 nor +1. These look like bits"),
            (np.asarray([[1, 1], [-1, 2]]), "spin", {}, "row 2, column 2 is 2, neither -1 nor +1. Map the data"),
            (
                np.asarray([[0.0, 1], [1, 1.5]]),
                "categorical",
                {},
                "row 2, column 2 is 1.5, not an integer from 0",
            ),
            (GREY, "categorical", {"cardinality": 9}, "row 1, position (3, 2) is 9, not an integer from 0 to 8"),
            (np.asarray([[0, 1], [-1, 1]]), "categorical", {}, "row 2, column 1 is -1, not an integer"),
            (np.asarray([[0, 1], [1e39, 1]]), "real", {}, "row 2, column 1 is 1e+39, too large for 32-bit floats"),
            (np.asarray([[0.0, 3], [1, 3]]), "real", {}, "column 2 is constant, always 3: its variance is 0"),
            (np.full((2, 3), 3), "real", {}, "column 1 is constant, always 3 (and 2 more): its variance is 0"),
            (np.asarray([["a", "b"]] * 2), "binary", {}, "data: the array holds strings"),
            (np.asarray([[None, 1]] * 2), "binary", {}, "data: 2 of 4 entries are missing (NA or None)"),
            (np.zeros((2, 2), complex), "real", {}, "data: the array holds complex numbers"),
            (BITS, "quaternion", {}, "unknown space 'quaternion'. Choose one of binary, spin, categorical, real"),
            (BITS, "binary", {"cardinality": 2}, "a cardinality was given, but the space is binary"),
        ],
    )
    def test_refusals(self, array, space, options, words):
        assert words in refusal(check, array, space, **options)

    def test_constant_columns_are_noted(self):
        array = np.asarray([[0, 1, 1], [0, 1, 0]])
        (note,) = check(array, "binary", source="x.csv")
        assert note.startswith("x.csv: 2 of 3 columns are constant (the first is column 1, always 0)")
        (note,) = check(array[:, 1:], "categorical")
        assert "1 of 2 columns is constant (column 1, always 1)" in note
        (note,) = check(np.ones((4, 2, 2), bool), "binary")
        assert "4 of 4 columns are constant (the first is position (1, 1), always 1)" in note

    def test_rows_are_counted_across_blocks(self, monkeypatch):
        monkeypatch.setattr("lnz.io._prepare._BLOCK", 10)
        array = np.tile(BITS, (50, 1)).astype(np.float64)
        assert check(array, "binary") == []
        array[0, 2] = 0
        array[150, 2] = 7
        assert "row 151, column 3 is 7" in refusal(check, array, "binary")
        array[170, 0] = np.nan
        assert "row 171, column 1 is nan" in refusal(check, array, "binary")


class TestPrepare:
    @pytest.mark.parametrize(
        ("values", "bits"),
        [
            ([0, 7, 8, 16], [0, 0, 1, 1]),
            ([0.0, 7.0, 8.0, 16.0], [0, 0, 1, 1]),
            ([0, 127, 128, 255], [0, 0, 1, 1]),
            ([0, 127, 128, 129], [0, 0, 1, 1]),
            ([0.0, 0.49, 0.5, 1.0], [0, 0, 1, 1]),
            ([0.1, 0.2], [0, 0]),
            ([0, 1], [0, 1]),
            ([0.0, 1.0], [0, 1]),
            ([False, True], [0, 1]),
        ],
    )
    def test_binarise_tells_the_scale(self, values, bits):
        out = binarise(np.asarray(values))
        assert out.dtype == np.uint8
        assert list(out) == bits

    def test_binarise_uint8(self):
        out = binarise(np.arange(256, dtype=np.uint8).reshape(2, 4, 32))
        assert out.shape == (2, 4, 32)
        assert out.sum() == 128

    def test_binarise_as_told(self):
        assert list(binarise(np.asarray([-1, 1]), threshold=0)) == [0, 1]
        assert list(binarise(np.asarray([0, 49, 50, 100]), levels=100)) == [0, 0, 1, 1]
        assert list(binarise(np.asarray([0, 60], np.uint8), levels=255)) == [0, 0]
        assert list(binarise(np.asarray([0, 60], np.uint8), threshold=-3.5)) == [1, 1]
        assert binarise(np.zeros((0, 3))).shape == (0, 3)

    def test_binarise_looks_at_every_block(self, monkeypatch):
        monkeypatch.setattr("lnz.io._prepare._BLOCK", 2)
        assert "is not clear" in refusal(binarise, np.asarray([0, 0.5, 16, 16, 16, 16]))
        assert list(binarise(np.asarray([7, 7, 16, 8, 0, 3]))) == [0, 0, 1, 1, 0, 0]
        for bad in (np.nan, np.inf):
            assert "holds NaN or infinity" in refusal(binarise, np.asarray([0, 1, 0, 1, bad, 1]))

    def test_binarise_by_a_fixed_draw(self, monkeypatch):
        grey = np.random.RandomState(3).randint(0, 256, (40, 784)).astype(np.uint8)
        bits = binarise(grey, stochastic=True, seed=5)
        np.testing.assert_array_equal(bits, np.random.RandomState(5).rand(40, 784) < grey / 255)
        assert (bits != binarise(grey, stochastic=True, seed=6)).mean() > 0.1
        assert abs(bits.mean() - grey.mean() / 255) < 0.02  # over 30,000 draws: more than 6 standard deviations
        monkeypatch.setattr("lnz.io._prepare._BLOCK", 1000)
        np.testing.assert_array_equal(bits, binarise(grey, stochastic=True, seed=5))  # blocks do not show
        zero_one = np.asarray([[0, 1], [1, 0]])
        np.testing.assert_array_equal(binarise(zero_one, stochastic=True), zero_one)

    @pytest.mark.parametrize(
        ("values", "options", "words"),
        [
            ([0, 100], {}, "the scale of values from 0 to 100 is not clear"),
            ([-1, 1], {}, "the scale of values from -1 to 1 is not clear"),
            ([0, 12], {}, "the scale of values from 0 to 12 is not clear"),
            ([0.5, 16], {}, "is not clear"),
            ([0, 300], {}, "is not clear"),
            ([0, 300], {"levels": 255}, "values run from 0 to 300, beyond 0 to 255"),
            ([-1, 3], {"levels": 3}, "values run from -1 to 3, beyond 0 to 3"),
            ([0, 1], {"levels": 0}, "levels is 0"),
            ([0, 1], {"levels": 2, "threshold": 1}, "Give only one of them"),
            ([0, 1], {"stochastic": True, "threshold": 1}, "Give only one of them"),
            ([0, 1], {"threshold": np.nan}, "threshold and levels must be finite"),
            ([0, np.nan], {}, "the array holds NaN or infinity"),
            ([0, np.inf], {"threshold": 1}, "the array holds NaN or infinity"),
            ([0, 1], {"stochastic": True, "seed": -1}, "the seed -1 is out of range"),
            (["a"], {}, "the array holds strings"),
        ],
    )
    def test_binarise_refuses(self, values, options, words):
        assert words in refusal(binarise, np.asarray(values), **options)

    def test_split_is_a_partition(self):
        for n, seed in [(10, 0), (1797, 0), (60_000, 7)]:
            parts = split(n, seed=seed)
            assert sorted(np.concatenate(parts)) == list(range(n))
            assert all((np.diff(part) > 0).all() for part in parts)
            assert all(part.dtype == np.int64 for part in parts)
        assert [len(part) for part in split(1797)] == [1258, 180, 359]
        assert [len(part) for part in split(10, fractions=(0.9, 0.1, 0.0))] == [9, 1, 0]
        assert not np.array_equal(split(1797, seed=1).train, split(1797, seed=2).train)

    def test_split_never_changes(self):
        """Results that were published on this split must stay comparable: these are pinned on purpose."""
        parts = split(1797, fractions=(0.7, 0.15, 0.15))
        assert list(parts.validation[:8]) == PINNED_VALIDATION
        assert hashlib.sha256(np.concatenate(parts).astype("<i8").tobytes()).hexdigest()[:16] == PINNED_SPLIT

    @pytest.mark.parametrize(
        ("n", "options", "words"),
        [
            (3, {}, "3 data leave none for the validation part"),
            (0, {}, "0 data leave none for the train part"),
            (9, {"fractions": (0.5, 0.5, 0.5)}, "are not three shares of 1"),
            (9, {"fractions": (1.5, -0.5, 0.0)}, "are not three shares of 1"),
            (9, {"fractions": (np.nan, 0.5, 0.5)}, "are not three shares of 1"),
            (9, {"seed": 2**32}, "the seed 4294967296 is out of range"),
        ],
    )
    def test_split_refuses(self, n, options, words):
        assert words in refusal(split, n, **options)

    def test_digits(self):
        data = digits()
        assert data.array.shape == (1797, 8, 8)
        assert data.rows.shape == (1797, 64)
        assert (data.array.min(), data.array.max()) == (0, 16)
        assert data.image_shape == (8, 8)
        np.testing.assert_array_equal(np.bincount(data.labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
        bits = binarise(data.array)
        np.testing.assert_array_equal(bits, data.array >= 8)
        (note,) = check(bits, "binary", columns=64)
        assert "columns are constant" in note


PINNED_VALIDATION = [0, 3, 7, 26, 33, 36, 43, 59]
PINNED_SPLIT = "e014a2a7f58e8a44"


def no_leftovers(folder, *names):
    assert sorted(os.listdir(folder)) == sorted(names)


class TestWriteAtomic:
    def test_replaces_whole(self, tmp_path):
        path = tmp_path / "x"
        write_atomic(path, lambda file: file.write(b"one"))
        write_atomic(str(path), lambda file: file.write(b"two"))
        assert path.read_bytes() == b"two"
        no_leftovers(tmp_path, "x")
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def test_is_on_disk_before_it_is_seen(self, tmp_path, monkeypatch):
        events = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
        monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
        write_atomic(tmp_path / "x", lambda file: file.write(b"one"))
        assert events == ["fsync", "replace", "fsync"]  # the content, the name, the folder

    @pytest.mark.parametrize("step", ["write", "fsync", "replace"])
    def test_full_disk(self, tmp_path, monkeypatch, step):
        def full(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        path = tmp_path / "x"
        path.write_bytes(b"old")
        if step != "write":
            monkeypatch.setattr(os, step, full)
        with pytest.raises(WriteError) as caught:
            write_atomic(path, full if step == "write" else lambda file: file.write(b"new"))
        assert str(caught.value).startswith(f"{path}: could not be written: the disk is full. Free some space")
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == b"old"
        no_leftovers(tmp_path, "x")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
    @pytest.mark.parametrize("size", [10, 30_000])  # within Python's buffer, and beyond it
    @pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv", "x.png"])
    def test_full_device(self, tmp_path, monkeypatch, name, size):
        """The kernel itself says no, and every writer lets its error number through."""
        full = lambda path, mode: open("/dev/full", mode.replace("x", "w"))  # noqa: E731, SIM115
        monkeypatch.setattr(files, "open", full, raising=False)
        with pytest.raises(WriteError, match="the disk is full") as caught:
            save_samples(tmp_path / name, np.zeros((size, 1)), (1, 1))
        assert caught.value.errno == errno.ENOSPC
        no_leftovers(tmp_path)

    @pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv"])
    def test_no_room_in_the_middle(self, tmp_path, name):
        """The header fits and the values do not; NumPy's own way of writing would lose the error number here."""
        array = np.random.RandomState(0).rand(30_000, 1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(WriteError, match="the file grew beyond the largest size allowed") as caught:
                save_samples(tmp_path / name, array)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        no_leftovers(tmp_path)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")])
    def test_other_failures_leave_nothing(self, tmp_path, error):
        def fail(file):
            file.write(b"new")
            raise error

        (tmp_path / "x").write_bytes(b"old")
        with pytest.raises(type(error)):
            write_atomic(tmp_path / "x", fail)
        assert (tmp_path / "x").read_bytes() == b"old"
        no_leftovers(tmp_path, "x")

    def test_bad_places(self, tmp_path):
        def message(path):
            with pytest.raises(WriteError) as caught:
                write_atomic(path, lambda file: file.write(b"new"))
            assert "\n" not in str(caught.value)
            return str(caught.value)

        (tmp_path / "file").write_bytes(b"")
        os.mkfifo(tmp_path / "pipe")
        assert "its folder does not exist" in message(tmp_path / "none" / "x")
        assert "its folder is a file" in message(tmp_path / "file" / "x")
        assert "its name is too long" in message(tmp_path / ("ä" * 200))
        assert "it is not a regular file" in message(tmp_path)
        assert "it is not a regular file" in message(tmp_path / "pipe")
        no_leftovers(tmp_path, "file", "pipe")

    def test_long_names(self, tmp_path):
        write_atomic(tmp_path / ("x" * 255), lambda file: file.write(b"new"))
        no_leftovers(tmp_path, "x" * 255)

    def test_follows_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to("target")
        write_atomic(tmp_path / "link", lambda file: file.write(b"new"))
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_bytes() == b"new"


class TestSaveSamples:
    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
    def test_round_trip(self, tmp_path, suffix, dtype):
        array = np.random.RandomState(0).randn(7, 9) * 100
        array = abs(array).astype(dtype) if dtype == np.uint8 else array.astype(dtype)
        path = tmp_path / f"x{suffix}"
        save_samples(path, array, (3, 3))
        data = load(path)
        np.testing.assert_array_equal(data.array.astype(dtype), array)
        assert data.image_shape == ((3, 3) if suffix == ".npz" else None)
        no_leftovers(tmp_path, path.name)

    def test_csv_of_three_axes(self, tmp_path):
        save_samples(tmp_path / "x.csv", GREY)
        assert (tmp_path / "x.csv").read_text().startswith("x0,x1,x2,")
        np.testing.assert_array_equal(load(tmp_path / "x.csv").array, GREY.reshape(2, 12))

    def test_npz_without_images(self, tmp_path):
        save_samples(tmp_path / "x.npz", BITS)
        assert list(np.load(tmp_path / "x.npz")) == ["x"]

    def test_jax_arrays(self, tmp_path):
        import jax.numpy as jnp

        save_samples(tmp_path / "x.npy", jnp.asarray(BITS))
        np.testing.assert_array_equal(load(tmp_path / "x.npy").array, BITS)

    @pytest.mark.parametrize(
        ("array", "grey"),
        [
            (np.asarray([[0, 1]], np.uint8), [255, 0]),
            (np.asarray([[False, True]]), [255, 0]),
            (np.asarray([[0.2, 0.4]]), [204, 153]),
            (np.asarray([[-1, 1]]), [255, 0]),
            (np.asarray([[7, 9]], np.uint8), [7, 9]),
            (np.asarray([[-4.0, 6.0]]), [0, 255]),
            (np.asarray([[5.0, 5.0]]), [0, 0]),
        ],
    )
    def test_grey_values(self, tmp_path, array, grey):
        from PIL import Image

        save_samples(tmp_path / "x.png", array, (1, 2))
        with Image.open(tmp_path / "x.png") as picture:
            pixels = np.asarray(picture)
        assert [pixels[160, 160], pixels[160, 480]] == grey  # a tile is 320 x 640 pixels, behind a border of 2

    def test_tiles(self, tmp_path):
        from PIL import Image

        array = np.zeros((5, 24, 30), np.uint8)
        array += 10 * np.arange(5, dtype=np.uint8)[:, None, None]
        save_samples(tmp_path / "x.png", array, (24, 30))
        with Image.open(tmp_path / "x.png") as picture:
            pixels = np.asarray(picture)
        tall, wide = 8 * 24 + 2, 8 * 30 + 2
        assert pixels.shape == (2 + 2 * tall, 2 + 3 * wide)
        for i, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
            assert (pixels[2 + tall * row :, 2 + wide * column :][: 8 * 24, : 8 * 30] == 10 * i).all()
        assert (pixels[:2] == 128).all()
        assert (pixels[2 + tall :, 2 + 2 * wide :] == 128).all()

    def test_force(self, tmp_path):
        path = tmp_path / "x.npy"
        save_samples(path, BITS)
        assert "exists already. Choose another name" in refusal(save_samples, path, 1 - BITS)
        np.testing.assert_array_equal(load(path).array, BITS)
        save_samples(path, 1 - BITS, force=True)
        np.testing.assert_array_equal(load(path).array, 1 - BITS)

    @pytest.mark.parametrize(
        ("name", "array", "shape", "words"),
        [
            ("x.jpg", BITS, None, "samples cannot be written as '.jpg'. Choose one of .npy, .npz, .csv, .png"),
            ("x.png", BITS, None, "a picture needs the height and width of one sample"),
            ("x.png", BITS, (2, 2), "a sample holds 3 values, not 2 x 2"),
            ("x.png", BITS, (-1, -3), "a sample holds 3 values, not -1 x -3"),
            ("x.png", np.zeros((9, 10**7), np.uint8), (1, 10**7), "9 tiles would take"),
            ("x.npy", np.asarray([[np.nan]]), None, "the samples hold NaN or infinity"),
            ("x.npy", np.zeros(3), None, "samples of shape (3,) do not have rows and columns"),
            ("x.npy", np.zeros((0, 3)), None, "samples of shape (0, 3) do not have rows and columns"),
            ("x.npy", np.asarray([["a"]]), None, "the array of samples holds strings"),
        ],
    )
    def test_refusals(self, tmp_path, name, array, shape, words):
        assert words in refusal(save_samples, tmp_path / name, array, shape)
        no_leftovers(tmp_path)


def test_errors_survive_a_pickle():
    for error in (DataError("a: b. C"), WriteError("a: b. C")):
        assert str(pickle.loads(pickle.dumps(error))) == "a: b. C"
    assert issubclass(DataError, ValueError)
    assert issubclass(WriteError, OSError)
