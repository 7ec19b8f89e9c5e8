"""Rows of bytes, as the library takes them."""

from . import _moelink as c


class Rows:
    """``data`` (an object with the buffer protocol, or an address) seen as rows; row i begins at i * row_stride."""

    def __init__(self, data, row_bytes, dtype=c.MOELINK_DTYPE_NONE, row_stride=0):
        self.data = data
        self.row_bytes = row_bytes
        self.dtype = dtype
        self.row_stride = row_stride

    def require(self, count, writable=False):
        """Checks that a buffer holds `count` rows; an address is the caller's word."""
        if self.data is None or isinstance(self.data, int):
            return
        view = memoryview(self.data)
        need = (count - 1) * (self.row_stride or self.row_bytes) + self.row_bytes if count > 0 else 0
        if view.nbytes < need:
            raise ValueError(f"{count} rows of {self.row_bytes} bytes need {need} bytes; the buffer has {view.nbytes}")
        if writable and view.readonly:
            raise ValueError("the output buffer is read-only")

    def fill(self, raw):
        """Writes this into a moelink_rows, which is good as long as self is."""
        raw.data = self.data
        raw.row_bytes = self.row_bytes
        raw.row_stride = self.row_stride
        raw.dtype = self.dtype

    @classmethod
    def of(cls, raw):
        return cls(raw.data, raw.row_bytes, raw.dtype, raw.row_stride)


def row_array(rows):
    """A contiguous array of moelink_rows; to be kept as long as its pointer is used."""
    array = c.moelink_rows_array(len(rows))
    for at, one in enumerate(rows):
        raw = c.moelink_rows()
        one.fill(raw)
        array[at] = raw
    return array
