"""The ranks that act together."""

from . import _moelink as c


class Group:
    """One rank of a group; one thread at a time may use it. A context manager; close() may be called again."""

    def __init__(self, handle):
        self._handle = handle

    @classmethod
    def threads(cls, size, **params):
        """All ranks as threads of this process, by rank. Keywords: fields of moelink_group_params, for every rank."""
        if not params:
            return [cls(handle) for handle in c.moelink_group_create_threads(size)]
        shared = group_params(**params)
        each = [shared] * size if size > 0 else size
        return [cls(handle) for handle in c.moelink_group_create_threads(each)]

    @classmethod
    def create(cls, unique_id, rank, size, **params):
        """Joins the group of a moelink_unique_id. Collective."""
        return cls(c.moelink_group_create(unique_id, group_params(rank=rank, size=size, **params)))

    @classmethod
    def create_with(cls, allgather, rank, size, **params):
        """Joins over allgather(mine, timeout_ns), which gives the bytes of all ranks in rank order. Collective."""
        return cls(c.moelink_group_create_with((allgather, group_params(rank=rank, size=size, **params))))

    @property
    def handle(self):
        """For functions of moelink.c."""
        if self._handle is None:
            raise ValueError("the group is closed")
        return self._handle

    @property
    def rank(self):
        return c.moelink_group_rank(self.handle)

    @property
    def size(self):
        return c.moelink_group_size(self.handle)

    @property
    def device(self):
        return c.moelink_group_device(self.handle)

    def barrier(self):
        """Returns when every rank has come. Collective."""
        c.moelink_group_barrier(self.handle)

    def allgather(self, mine):
        """The bytes of every rank, in rank order; the same number on every rank. Collective."""
        return c.moelink_group_allgather(self.handle, mine)

    def broadcast(self, data, root):
        """Fills the writable buffer from rank root. Collective."""
        c.moelink_group_broadcast(self.handle, data, root)

    def split(self, color, key=0):
        """The group of the ranks with this color, ordered by key; None for a negative color. Collective."""
        handle = c.moelink_group_split(self.handle, color, key)
        return None if handle is None else Group(handle)

    def finalize(self):
        """Orderly end, after which no peer's exit is an error. Collective."""
        c.moelink_group_finalize(self.handle)

    def abort(self):
        """Ends the group at once. Any thread may call it before close()."""
        c.moelink_group_abort(self.handle)

    def close(self):
        handle, self._handle = self._handle, None
        if handle is not None:
            c.moelink_group_destroy(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()


def group_params(**fields):
    params = c.moelink_group_params()
    set_fields(params, fields)
    return params


def set_fields(struct, fields):
    """Sets what the C struct has, and refuses other names."""
    for name, value in fields.items():
        if not hasattr(struct, name):
            raise TypeError(f"{type(struct).__name__} has no field {name!r}")
        setattr(struct, name, value)
