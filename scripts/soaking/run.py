"""The run: what is done next, at random from a seed, and whether what comes back is right."""

import collections
import errno
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import changing, commands, contents, growth, reading
from .timeline import ABSENT, KEPT_S, REFUSED, VISIBLE_S, File, Intervals
from .workers import Died, Worker, answered

# Above what an operation takes of itself, on a busy machine, and while no mount's process is stopped.
PATIENCE_S = 5.0
# Who hangs longer than this is killed, and if that does not help, the mounts are aborted.
HOPELESS_S = 20.0
STOP_S = (0.2, 2.0)
REST_S = 1.5
END_S = 10.0
FORGET_EVERY_S = 10.0
REPORTED = 20

DIRECTORIES = ["alpha", "beta", "gamma", "natives", "natives/inner"]
# In the directories of pickles, and in those of native files.
PICKLES = {"pytorch_model.bin": "zip", "legacy.pt": "legacy", "deflated.ckpt": "deflated", "turned.pth": "transposed"}
NATIVES = {"first.safetensors": "native", "second.safetensors": "native"}
TEXTS = {"config.json": "text", "notes.txt": "text"}
RENAMED = {"gamma": "delta"}
NEW_FILES = 4

ERRORS = [errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.ENOTDIR]
ERROR_WORDS = [os.strerror(number) for number in ERRORS]

TROUBLED_OPTIONS = [
    ["--cache-size", "1G"],
    ["--cache-size", "3M"],
    ["--cache-size", "20M", "--promote", "always"],
    ["--cache-size", "20M", "--tensors", "hide"],
    ["--promote", "never", "--threads", "2"],
]
STEADY_OPTIONS = ["--cache-size", "40M"]


class Hopeless(Exception):
    """A hang that nothing ends but the end of the mounts."""


@dataclass
class Operation:
    """What a worker is asked, and what is to be done with its answer."""

    kind: str
    function: object
    arguments: tuple
    judge: object
    # Whatever comes back, and if nothing does.
    finish: object = lambda: None
    # What a death by SIGBUS is to be held against: the mount and the path that may have been mapped.
    mapped: tuple | None = None
    takes_s: float = 0.0
    hung: bool = False


@dataclass
class Mount:
    point: Path
    options: list
    pid: int = 0
    # Nothing is there by name; whoever holds a file gets no answer either; nothing answers for now.
    away: Intervals = field(default_factory=Intervals)
    dead: Intervals = field(default_factory=Intervals)
    stopped: Intervals = field(default_factory=Intervals)
    busy: bool = False


class Run:
    def __init__(self, program, directory, seed, worker_count, say=print):
        self.random = random.Random(seed)
        self.directory = directory
        self.say = say
        self.source, self.expected, self.spare = (directory / name for name in ("source", "expected", "spare"))
        self.stfs = commands.Stfs(program, directory)
        self.steady = Mount(directory / "steady", STEADY_OPTIONS)
        self.troubled = Mount(directory / "troubled", TROUBLED_OPTIONS[0])
        self.mounts = [self.steady, self.troubled]
        self.files, self.versions = {}, 0
        self.former = set()
        self.counts, self.errors = collections.Counter(), collections.Counter()
        self.wrong, self.hangs, self.failures = [], [], []
        self.sizes, self.answers, self.workers = [], {}, []
        self.recent = collections.deque(maxlen=8)
        self.worker_count = worker_count

    # The whole

    def go(self, seconds):
        self._begin()
        began = time.monotonic()
        try:
            self._work_until(began + seconds / 10)
            self._rest_and_measure()
            self._work_until(began + seconds)
            self._rest_and_measure()
            self._check_that_the_former_end()
        except Hopeless as hopeless:
            self._fail(str(hopeless))

    def _begin(self):
        for path in (self.source, self.expected, self.spare):
            path.mkdir()
        for name in DIRECTORIES:
            (self.source / name).mkdir()
            for file_name, kind in ({**NATIVES, **TEXTS} if "natives" in name else {**PICKLES, **TEXTS}).items():
                self._make(f"{name}/{file_name}", kind)
        for mount in self.mounts:
            mount.point.mkdir()
            step = self.stfs.mount(self.source, mount.point, mount.options)
            if step.status:
                raise SystemExit(f"stfs mount: {step.words}")
            mount.pid = commands.process_of(mount.point)
        self.workers = [Worker() for _ in range(self.worker_count)]

    @property
    def grown(self):
        return [title for title, _, _, too_much in self.figures if too_much]

    @property
    def figures(self):
        """Of the growth; none if the run did not come to its end."""
        return list(growth.rows(*self.sizes)) if len(self.sizes) == 2 else []

    def close(self):
        """Leaves no process and no mount behind, whatever state they are in."""
        for mount in self.mounts:
            if mount.pid:
                commands.kill(mount.pid, signal.SIGCONT)
        for worker in self.workers:
            worker.kill()
        left = list(commands.mounts_below(self.directory))
        for _, connection in left:
            commands.abort(connection)
        for point, _ in left:
            commands.command("umount", "-l", point)
        pids = [pid for pid in [*self.former, *(mount.pid for mount in self.mounts)] if pid]
        deadline = time.monotonic() + END_S
        while any(map(self._is_ours, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in filter(self._is_ours, pids):
            commands.kill(pid, signal.SIGKILL)

    def _is_ours(self, pid):
        """Whether the process lives and is still a mount of this run."""
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return str(self.directory).encode() in words and commands.is_alive(pid)

    def _work_until(self, deadline):
        forget = time.monotonic() + FORGET_EVERY_S
        while (now := time.monotonic()) < deadline:
            for worker in self.workers:
                if not worker.operation:
                    worker.ask(self._next())
            self._take_answers()
            if now > forget:
                self._forget(now - KEPT_S)
                forget = now + FORGET_EVERY_S
        while any(worker.operation for worker in self.workers):
            self._take_answers()

    def _take_answers(self):
        for worker in answered(self.workers):
            self._take(worker)
        for worker in self.workers:
            if worker.operation:
                self._watch(worker)

    def _take(self, worker):
        operation, asked = worker.operation, worker.asked
        self.counts[operation.kind] += 1
        if not operation.kind.startswith(("read", "list")):
            self.recent.append(operation.kind)
        try:
            answer = worker.answer()
        except Died as died:
            operation.finish()
            self._judge_death(operation, asked, died.signal_number)
        except RuntimeError as error:
            operation.finish()
            self._fail(f"{operation.kind}: {error}")
        else:
            operation.finish()
            self._judge_time(operation, operation.kind, asked, time.monotonic(), operation.takes_s)
            operation.judge(answer)

    def _watch(self, worker):
        """Says where a worker hangs while it still does, and ends it at last."""
        operation, now = worker.operation, time.monotonic()
        waited = now - worker.asked - self._stopped_seconds(worker.asked, now) - operation.takes_s
        if waited > PATIENCE_S and not operation.hung:
            self._hang(operation, f"{operation.kind} {operation.arguments[:2]}, in {worker.where()}")
        if waited > HOPELESS_S:
            worker.kill()
        if waited > HOPELESS_S + PATIENCE_S:
            raise Hopeless(f"{operation.kind} cannot even be killed: the mounts are aborted, and the run ends")

    def _rest_and_measure(self):
        self.stfs.cache_command("clear")
        time.sleep(REST_S)
        self.sizes.append(growth.measure(self.steady.pid, self.stfs.cache))
        if self.grown:
            self.say(f"the steady mount's process has open: {growth.descriptors(self.steady.pid)}")

    def _check_that_the_former_end(self):
        """A process whose mount was taken away ends with its last reader, and nobody reads any more."""
        deadline = time.monotonic() + END_S
        while left := [pid for pid in self.former if self._is_ours(pid)]:
            if time.monotonic() > deadline:
                self.hangs.append(f"processes of former mounts do not end: {left}")
                return
            time.sleep(0.05)

    def _forget(self, before):
        for file in self.files.values():
            file.forget(before)
        known = {state.value for file in self.files.values() for state in file.states}
        for number in [number for number in self.answers if number not in known]:
            del self.answers[number]
        for path in self.expected.iterdir():
            if int(path.stem) not in known:
                path.unlink()
        for intervals in (getattr(mount, name) for mount in self.mounts for name in ("away", "dead", "stopped")):
            intervals.forget(before)

    # What comes next

    def _next(self):
        choices = {
            self._read: 50,
            self._list: 6,
            self._change: 10,
            self._rename: 1,
            self._warm: 3,
            self._cache_command: 3,
            self._ask: 3,
            self._stop: 1.5,
            self._trouble: 4,
        }
        while True:
            (make,) = self.random.choices(list(choices), choices.values())
            if operation := make():
                return operation

    def _mount(self):
        return self.random.choice(self.mounts)

    def _read(self):
        mount, path = self._mount(), self.random.choice(sorted(self.files))
        kind = self.files[path].kind
        readers = reading.FILES if kind == "text" else [*reading.FILES, *reading.TENSORS]
        shown = mount.point / shown_name(path)
        reader = self.random.choice(readers).__name__
        if kind in contents.PICKLES and self.random.random() < 0.1:
            reader, shown = "tensor_file", shown.with_suffix(".tensors")
        return Operation(
            f"read: {reader}",
            reading.observe,
            (reader, path, shown, random.Random(self.random.random())),
            lambda observations: self._judge_observations(mount, observations),
            mapped=(mount, path),
            takes_s=reading.HOLD_S[1],
        )

    def _list(self):
        mount, name = self._mount(), self.random.choice(list(reading.LISTINGS))
        return Operation(
            f"list: {name}", reading.LISTINGS[name], (mount.point,), lambda listing: self._judge_listing(mount, listing)
        )

    def _change(self):
        candidates = [path for path, file in sorted(self.files.items()) if not file.busy and self._is_reachable(path)]
        # Some are left alone for long enough to be promoted.
        hot = [path for path in candidates if "alpha" not in path]
        if not hot:
            return None
        path = self.random.choice(hot if self.random.random() < 0.9 else candidates)
        file = self.files[path]
        way = self.random.random()
        if isinstance(file.value, int) and way < 0.1:
            return self._changing("delete", path, ABSENT, changing.delete, (self.source / path,))
        if isinstance(file.value, int) and file.kind in contents.PICKLES and way < 0.2:
            return self._changing("truncate", path, REFUSED, changing.truncate, (self.source / path,))
        if way > 0.95 and sum("new" in path for path in self.files) < NEW_FILES:
            path = f"{path.rpartition('/')[0]}/new{self.versions}.pt"
            self.files[path] = file = File("zip")
        how = "replace"
        if isinstance(file.value, int) and file.kind in contents.PICKLES:
            how = self.random.choice(["replace", *changing.IN_PLACE])
        number = self._number()
        arguments = (how, self.source / path, file.kind, number, self.spare / str(number), self.expected / str(number))
        return self._changing(how, path, number, changing.change, arguments)

    def _changing(self, how, path, value, function, arguments):
        file = self.files[path]
        file.begin_change(value)
        file.how = how
        return Operation(f"change: {how}", function, arguments, lambda _: None, file.end_change)

    def _is_reachable(self, path):
        return (self.source / path).parent.is_dir()

    def _rename(self):
        (name, target) = self.random.choice([*RENAMED.items(), *((new, old) for old, new in RENAMED.items())])
        below = [path for path in self.files if path.startswith(f"{name}/")]
        if not (self.source / name).is_dir() or any(self.files[path].busy for path in below):
            return None
        changed = []
        for path in below:
            file = self.files[path]
            moved = self.files.setdefault(target + path.removeprefix(name), File(file.kind))
            moved.begin_change(file.value)
            file.begin_change(ABSENT)
            changed += [file, moved]

        def finish():
            for file in changed:
                file.end_change()

        arguments = (self.source / name, self.source / target)
        return Operation("change: rename a directory", changing.rename_directory, arguments, lambda _: None, finish)

    def _warm(self):
        path = self.random.choice(sorted(self.files))
        place = self.random.choice([self.source / path, self._mount().point / shown_name(path)])
        return Operation("promote: stfs warm", self.stfs.warm, (place,), self._judge_step)

    def _cache_command(self):
        name = self.random.choice(["clear", "clear", "evict", "evict", "verify", "list", "status", "delete"])
        if name == "delete":
            return Operation("evict: delete the cache", self.stfs.delete_cache, (), self._judge_step)
        paths = [self.source / self.random.choice(sorted(self.files))] if name == "evict" else []
        return Operation(f"cache: {name}", self.stfs.cache_command, (name, *paths), self._judge_step)

    def _ask(self):
        mount = self._mount()
        words = self.random.choice([("status",), ("status", mount.point), ("status", "--json", mount.point)])
        return Operation("ask: stfs status", self.stfs.run, words, self._judge_step)

    def _stop(self):
        mount = self._mount()
        if mount.busy:
            return None
        mount.busy = True
        mount.stopped.begin()
        seconds = self.random.uniform(*STOP_S)

        def finish():
            commands.kill(mount.pid, signal.SIGCONT)
            mount.stopped.end()
            mount.busy = False

        arguments = (mount.pid, seconds)
        return Operation(
            "trouble: SIGSTOP, SIGCONT", commands.stop_and_continue, arguments, lambda _: None, finish, takes_s=seconds
        )

    def _trouble(self):
        mount = self.troubled
        if mount.busy:
            return None
        how = self.random.choice([*commands.DEADLY, *commands.GENTLE])
        deadly = how in commands.DEADLY
        options = self.random.choice(TROUBLED_OPTIONS)
        mount.busy = True
        mount.away.begin()
        if deadly:
            mount.dead.begin()
        self.former.add(mount.pid)

        def finish():
            mount.away.end()
            if deadly:
                mount.dead.end()
            mount.busy = False

        arguments = (self.stfs, how, mount.point, mount.pid, self.source, options)
        # Some commands, each of which is judged by itself.
        return Operation(
            f"trouble: {how}", end_and_mount, arguments, self._judge_trouble, finish, takes_s=4 * PATIENCE_S
        )

    # What came back

    def _judge_time(self, operation, what, started, ended, takes_s=0.0):
        took = ended - started - self._stopped_seconds(started, ended)
        if took > PATIENCE_S + takes_s and not operation.hung:
            self._hang(operation, f"{what}: {took:.1f} s")

    def _judge_death(self, operation, asked, number):
        name = signal.Signals(number).name if number > 0 else "an exit"
        if operation.hung:
            return
        if number == signal.SIGBUS and operation.mapped:
            mount, path = operation.mapped
            file = self.files[path]
            if file.changes.overlap(self._since(mount, asked), time.monotonic()) or mount.dead.overlap(
                asked, time.monotonic()
            ):
                self.errors[name] += 1
                return
        self._fail(f"{operation.kind}: {name} where nothing was changed {operation.arguments[:2]}")

    def _judge_observations(self, mount, observations):
        for seen in observations:
            file = self.files[seen.path]
            since = self._since(mount, seen.started)
            values = file.values(since, seen.opened or seen.ended)
            if seen.error:
                self.errors[seen.error[:70]] += 1
                if not self._may_fail(mount, file, seen, since):
                    what = f"{'read' if seen.opened else 'opened'} by {seen.reader} in {mount.point.name}"
                    self._fail(f"{seen.path}, {what}: {seen.error}; it is unchanged")
            if seen.parts:
                self.counts["parts compared"] += len(seen.parts)
                if not any(self._is(value, seen.parts) for value in values):
                    self._wrong(seen, values)

    def _may_fail(self, mount, file, seen, since):
        if seen.error.startswith(("OSError", "FileNotFound")) and not any(word in seen.error for word in ERROR_WORDS):
            return False
        if mount.dead.overlap(seen.started, seen.ended) or file.changes.overlap(since, seen.ended):
            return True
        return seen.opened is None and (
            mount.away.overlap(seen.started, seen.ended) or bool(file.values(since, seen.ended) & {ABSENT, REFUSED})
        )

    def _is(self, value, parts):
        # A version whose bytes are not written down yet has not reached the source either.
        if not isinstance(value, int) or not (value in self.answers or (self.expected / str(value)).exists()):
            return False
        return all(self._expected(value).answer(part) == answer for part, answer in parts)

    def _expected(self, number):
        if number not in self.answers:
            self.answers[number] = contents.Expected(self.expected / str(number))
        return self.answers[number]

    def _judge_listing(self, mount, listing):
        since = self._since(mount, listing.started)
        if mount.away.overlap(listing.started, listing.ended):
            return
        changed = False
        possible = set()
        for path, file in self.files.items():
            shown, refused = shown_name(path), f"{path}.refused.txt"
            possible |= {shown, refused}
            values = file.values(since, listing.ended)
            if file.changes.overlap(since, listing.ended):
                changed = True
                continue
            if not listing.names:
                continue
            (value,) = values
            present = {name for name in (shown, refused) if name in listing.names}
            wanted = {ABSENT: set(), REFUSED: {refused}}.get(value, {shown})
            if present != wanted:
                self._fail(f"a listing has {present} for {path}, which is {value}")
            size = listing.names.get(shown)
            if size is not None and isinstance(value, int) and size != self._expected(value).answer(("size",)):
                self._fail(f"{path}: a listing says {size} bytes")
        unknown = [name for name in listing.names if name not in possible and ".tensors/" not in name]
        if unknown:
            self._fail(f"a listing has {unknown[:3]}, which nothing was made for")
        if listing.errors and not changed:
            self._fail("a listing had errors, and nothing had changed")

    def _judge_step(self, step, operation=None):
        operation = operation or Operation(step.name, None, (), None)
        self._judge_time(operation, step.name, step.started, step.ended)
        # Refusals are right where things change; ends by a signal and panics never are.
        if step.status < 0 or step.status == 101 or "panicked" in step.words:
            self._fail(f"{step.name}: exit {step.status}: {step.words[:500]}")

    def _judge_trouble(self, answer):
        steps, pid, options = answer
        self.troubled.pid, self.troubled.options = pid, options
        self.former.discard(pid)
        for step in steps:
            self._judge_step(step)
        if not pid:
            self._fail(f"no mount was to be had again: {[(step.name, step.status, step.words) for step in steps]}")
            self.troubled.busy = True
            self.troubled.away.begin()
            self.troubled.dead.begin()

    def _since(self, mount, moment):
        """From when on something that is seen now may have been so. A process that was stopped could not look."""
        return mount.stopped.before(moment) - VISIBLE_S

    def _stopped_seconds(self, since, until):
        return sum(mount.stopped.seconds_in(since, until) for mount in self.mounts)

    def _make(self, path, kind):
        number, self.files[path] = self._number(), File(kind)
        self.files[path].begin_change(number)
        contents.write(kind, number, self.source / path, self.expected / str(number))
        self.files[path].end_change()

    def _number(self):
        self.versions += 1
        return self.versions

    def _wrong(self, seen, values):
        parts = {value: [one for one, answer in seen.parts if not self._is(value, [(one, answer)])] for value in values}
        # Of which version they are instead.
        known = [state.value for state in self.files[seen.path].states if isinstance(state.value, int)]
        of = {part[1:]: [value for value in known if self._is(value, [(part, answer)])] for part, answer in seen.parts}
        ending = f", which are of {of}" + (f", then {seen.error}" if seen.error else "")
        last = f"last changed by {self.files[seen.path].how}"
        self.wrong.append(f"{seen.path} by {seen.reader}: of these versions differ {parts}{ending} ({last})")
        self._report("WRONG BYTES", self.wrong)

    def _hang(self, operation, what):
        operation.hung = True
        self.hangs.append(what)
        self._report("HANG", self.hangs)

    def _fail(self, what):
        under_way = [worker.operation.kind for worker in self.workers if worker.operation]
        self.failures.append(f"{what} (just ended: {', '.join(self.recent)}; under way: {', '.join(under_way)})")
        self._report("FAILED", self.failures)

    def _report(self, title, reports):
        if len(reports) <= REPORTED:
            self.say(f"{title}: {reports[-1]}")


def end_and_mount(stfs, how, mount_point, pid, source, options):
    """Ends a mount and makes it again. The steps that it took, the new process, and its options."""
    steps = commands.end(stfs, how, mount_point, pid)
    if how in commands.GENTLE and commands.is_mounted(mount_point):
        # It is in use: that was refused, and it goes on.
        return steps, pid, options
    for _ in range(20):
        steps.append(stfs.mount(source, mount_point, options))
        if not steps[-1].status:
            return steps, commands.process_of(mount_point), options
        # Until the kernel says that the process is gone.
        time.sleep(0.1)
    return steps, 0, options


def shown_name(path):
    """What a mount calls a file of the source."""
    name = Path(path)
    if name.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        name = name.with_name(name.stem.removeprefix("pytorch_") + ".safetensors")
    return str(name)
