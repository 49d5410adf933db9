"""The script of a sandboxed process: serves one untrusted program, or runs the code of asserts against one.

It is run by a bare interpreter (`child.pyc ROLE LIMITS DESCRIPTOR…`) for every program, so it imports nothing that
costs: json and socket would double its start. Requests reach it as marshal, from trusted peers; replies leave
it as lines of JSON, which a peer can read without trust. A reply repeats its request's nonce, so a program
can't answer what wasn't asked yet, and it is plain data, compared by the peer.

Role "program": `load` runs (or, for stdin tests, compiles) the program, `get`, `attribute`, `assign` and
`call` use what it defined, `stdin` runs it as a script in a fork, so that each case starts afresh and has
real file descriptors.
Role "tester": runs assert code in which the program's names are proxies: arguments travel to the program,
plain values come back, and the comparison happens here, out of the program's reach.

Values travel as JSON's types with tags for what it lacks (tuple, set, frozenset, dict, bytes, complex).
Anything else stays where it is and travels as a reference; it can be called and have its attributes taken,
and equals nothing.
"""

import builtins
import marshal
import os
import sys
from _json import encode_basestring_ascii

MEMORY_EXIT = 86
_LENGTH = 12  # digits in front of a request
_LONG_INTEGER = 10_000  # bits
_MOST_ITEMS = 100_000  # of a lazy value that the tests go through
_SCALARS = (bool, int, float, str)
_ITERABLES = {"tuple": tuple, "set": set, "frozenset": frozenset}


class Unsupported(Exception):
    """A value that can't be sent: the test, not the program, is at fault."""


def encode(value, refer):
    """`value` as a tree of JSON's types; `refer(value)` answers for what isn't plain data."""
    if value is None:
        return None
    if isinstance(value, int) and value.bit_length() > _LONG_INTEGER:
        return {"integer": hex(value)}  # Python refuses to write long ones in decimal
    for scalar in _SCALARS:
        if isinstance(value, scalar):
            return scalar(value)  # a subclass loses its own behaviour, equality above all
    if isinstance(value, list):
        return [encode(item, refer) for item in value]
    for tag, kind in _ITERABLES.items():
        if isinstance(value, kind):
            return {tag: [encode(item, refer) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"reference": refer(value)}


def decode(tree, resolve):
    """The value of `encode`'s tree; `resolve(number)` answers for references. ValueError on anything else."""
    if tree is None or isinstance(tree, _SCALARS):
        return tree
    if isinstance(tree, list):
        return [decode(item, resolve) for item in tree]
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError("not an encoded value")
    ((tag, content),) = tree.items()
    if tag in _ITERABLES:
        return _ITERABLES[tag](decode(item, resolve) for item in content)
    if tag == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}
    if tag == "integer":
        return int(content, 16)
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "complex":
        return complex(*content)
    if tag == "reference":
        return resolve(content)
    raise ValueError("not an encoded value")


def to_json(tree):
    """The text of a tree of JSON's types."""
    if tree is None:
        return "null"
    if isinstance(tree, bool):
        return "true" if tree else "false"
    if isinstance(tree, str):
        return encode_basestring_ascii(tree)
    if isinstance(tree, int):
        return repr(tree)
    if isinstance(tree, float):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(tree), repr(tree))
    if isinstance(tree, list):
        return f"[{','.join([to_json(item) for item in tree])}]"
    return f"{{{','.join([f'{encode_basestring_ascii(key)}:{to_json(item)}' for key, item in tree.items()])}}}"


def frame(request):
    """The bytes of a request."""
    data = marshal.dumps(request, 2)
    return b"%0*d" % (_LENGTH, len(data)) + data


def write(descriptor, data):
    """Write all of the bytes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def reply_with(descriptor, message):
    """Write one line of JSON."""
    write(descriptor, to_json(message).encode() + b"\n")


def read(descriptor, size):
    """So many bytes, or fewer at the end."""
    parts = []
    while size and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def requests(descriptor):
    """Each request, until there are no more."""
    while length := read(descriptor, _LENGTH):
        yield marshal.loads(read(descriptor, int(length)))


def describe(error):
    """An error's type and text, also where its own code fails."""
    try:
        return [type(error).__name__, str(error)[:500]]
    except BaseException:
        return ["Exception", ""]


def first_items(value):
    """The items of anything that can be gone through, so many at most."""
    return [item for item, _ in zip(value, range(_MOST_ITEMS))]  # noqa: B905 - as many as there are


# What a tester may ask of an object of the program: the answer is plain data.
PEEKS = {
    "bool": bool, "len": len, "list": first_items, "in": lambda value, item: item in value,
    "item": lambda value, key: value[key],
}  # fmt: skip


class Served:
    """One program, and the objects of it that were referred to."""

    def __init__(self):
        self.objects = []
        self.module = type(sys)("solution")
        self.script = None

    def refer(self, value):
        """The number under which a value is kept."""
        self.objects.append(value)
        return len(self.objects) - 1

    def answer(self, request):
        """What a request's operation gives."""
        operation = request["do"]
        if operation == "peek":
            return PEEKS[request["how"]](*(decode(tree, self.objects.__getitem__) for tree in request["values"]))
        if operation == "load":
            self.script = compile(request["program"], "program.py", "exec")
            if request["run"]:
                # Registered, as dataclasses and pickle look a class's module up by its name.
                sys.modules["solution"] = self.module
                exec(self.script, self.module.__dict__)
            return None
        if operation == "get":
            return self.module.__dict__[request["name"]]
        if operation == "attribute":
            return getattr(self.objects[request["of"]], request["name"])
        if operation == "assign":
            value = decode(request["value"], self.objects.__getitem__)
            return setattr(self.objects[request["of"]], request["name"], value)
        function, args, kwargs = (decode(tree, self.objects.__getitem__) for tree in request["call"])
        return function(*args, **kwargs)


def serve_program(descriptor):
    """Answer requests about one program until the peer closes."""
    served = Served()
    for request in requests(descriptor):
        if request["do"] == "stdin":
            found = run_case(descriptor, served.script, request["input"])
        else:
            try:
                found = {"value": encode(served.answer(request), served.refer)}
                to_json(found)
            except BaseException as error:
                found = {"raised": describe(error)}
        reply_with(descriptor, {"id": request["id"], **found})


def run_case(descriptor, script, text):
    """Run the script on this input in a fork: its output and wait status."""
    files = []
    try:
        for name in (".input", ".output"):
            files.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            os.unlink(name)
        source, sink = files
        write(source, text.encode("utf-8", "surrogatepass"))
        os.lseek(source, 0, os.SEEK_SET)
        pid = os.fork()
    except OSError as error:
        return {"failed": str(error)}
    if pid == 0:
        os.close(descriptor)
        os.dup2(source, 0)
        os.dup2(sink, 1)
        os.closerange(3, 64)
        run_script(script)
    status = os.waitpid(pid, 0)[1]
    os.lseek(sink, 0, os.SEEK_SET)
    output = read(sink, os.fstat(sink).st_size)
    os.close(source)
    os.close(sink)
    return {"status": status, "output": output.decode("utf-8", "replace")}


def run_script(script):
    """Run as `python program.py` would, and leave out the costly part of an interpreter's end."""
    module = type(sys)("__main__")
    module.__file__ = "program.py"
    sys.modules["__main__"] = module
    code = 0
    try:
        try:
            exec(script, module.__dict__)
        finally:
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()
            if "atexit" in sys.modules:
                sys.modules["atexit"]._run_exitfuncs()
            module.__dict__.clear()  # files that it left open are written to their ends
            for stream in (sys.stdout, sys.__stdout__):
                if not stream.closed:
                    stream.flush()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else leave.code is not None
    except MemoryError:
        code = MEMORY_EXIT
    except BaseException:
        code = 1
    os._exit(code & 0xFF)


class Remote:
    """A value that lives in the program's process."""

    def __init__(self, program, number):
        self.__dict__.update(_program=program, _number=number)

    def __call__(self, *args, **kwargs):
        """Call the value where it lives."""
        return self._program.ask(do="call", call=[encode(part, refer) for part in (self, list(args), kwargs)])

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask(do="attribute", of=self._number, name=name)

    def __setattr__(self, name, value):
        self._program.ask(do="assign", of=self._number, name=name, value=encode(value, refer))

    def _peek(self, how, *values):
        return self._program.ask(do="peek", how=how, values=[encode(value, refer) for value in (self, *values)])

    def __bool__(self):
        return self._peek("bool")

    def __len__(self):
        return self._peek("len")

    def __iter__(self):
        return iter(self._peek("list"))

    def __contains__(self, item):
        return self._peek("in", item)

    def __getitem__(self, key):
        return self._peek("item", key)


def refer(value):
    """The number of a value that lives in the program's process; others can't be sent."""
    if isinstance(value, Remote):
        return value._number
    raise Unsupported(type(value).__name__)


class Program:
    """The program's process, as the tester sees it. `uses` counts calls, and attributes taken."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.replies = open(descriptor, "rb", closefd=False)  # noqa: SIM115 - as long as the process
        self.uses = 0

    def ask(self, **request):
        """What the program's process replies; raises here what was raised there."""
        import json

        self.uses += request["do"] != "get"
        nonce = os.urandom(8).hex()
        write(self.descriptor, frame({"id": nonce, **request}))
        reply = json.loads(self.replies.readline())
        if reply["id"] != nonce:
            raise ConnectionError("forged reply")
        if "raised" in reply:
            name, text = reply["raised"]
            kind = getattr(builtins, str(name), None)
            # A failed assert or import of the program mustn't read as one of the tests, nor end a loop of theirs.
            if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(
                kind, (AssertionError, ImportError, UnicodeError, StopIteration, StopAsyncIteration)
            ):
                kind = RuntimeError
            raise kind(str(text))
        return decode(reply["value"], lambda number: Remote(self, number))


def run_tests(request, program):
    """Run assert code once: how it ended, how many asserts ran and how often the program was used."""
    asserts = 0

    def count():
        nonlocal asserts
        asserts += 1

    names = {request["counter"]: count, "__name__": "__main__"}
    ended, raised = "passed", None
    try:
        for name in request["modules"]:
            names[name] = __import__(name)
        for name in request["names"]:
            try:
                names[name] = program.ask(do="get", name=name)
            except KeyError:
                continue
            program.uses += not isinstance(names[name], Remote)
        exec(compile(request["code"], "tests.py", "exec"), names)
    except AssertionError:
        ended = "failed"
    except (Unsupported, ImportError) as error:
        ended, raised = "unsupported", describe(error)
    except BaseException as error:
        ended, raised = "raised", describe(error)
    return {"ended": ended, "raised": raised, "asserts": asserts, "uses": program.uses}


def leave(code=None):
    """`exit` and `quit`."""
    raise SystemExit(code)


def limit(values):
    """Set resource limits, given as `NUMBER=VALUE,…`, for this process and what it starts, for good.

    Here and not before the interpreter starts: that would take a slow kind of fork, and in a user namespace the kernel
    counts only the processes that were started under the namespace's own limit.
    """
    import resource

    for pair in values.split(","):
        kind, value = map(int, pair.split("="))
        # At the soft limit of CPU time a signal tells what happened, at the hard one the process is killed.
        resource.setrlimit(kind, (value, value + (kind == resource.RLIMIT_CPU)))


def main(role, limits, *numbers):
    """Take the limits on, say so, and serve requests in this role."""
    descriptors = [int(number) for number in numbers]
    sys.argv[:] = ["program.py"]
    os.environ.pop("PWD", None)  # bwrap's
    builtins.exit = builtins.quit = leave  # of the module `site`, which isn't imported
    limit(limits)
    if role == "tester" and sys.platform == "linux":
        # Expected values are in this process: keep the program, which has the same user, from reading them.
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    reply_with(descriptors[0], {"id": "ready"})
    if role == "program":
        serve_program(descriptors[0])
        return
    for request in requests(descriptors[0]):
        reply_with(descriptors[0], {"id": request["id"], **run_tests(request, Program(descriptors[1]))})


if __name__ == "__main__":
    main(*sys.argv[1:])
