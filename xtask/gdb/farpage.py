"""farpage's page tables, folios and address spaces, for gdb.

    gdb KERNEL -ex 'target remote 127.0.0.1:PORT' -x xtask/gdb/farpage.py

Loaded by `cargo run -- gdb`; see docs/DEBUGGING.md. Page tables are read as physical memory, which needs nothing but CR3: a walk works
whatever the kernel has done to its own mappings, and nothing runs in the guest. Entries are decoded by docs/PTE-FORMAT.md, in
Python and not by the kernel's decoder, so that the two can be held against each other. Folios and spaces are found as the
memory manager finds them (frame map, keys of objects), their fields by the names in the kernel's debug information: where a name changes,
the command says which one it misses.
"""

import struct

import gdb

PAGE = 4096
WORDS = 512
# docs/PTE-FORMAT.md, "The four words".
P, RW, US, PWT, PCD, A, D, PS, G = (1 << n for n in range(9))
EXCLUSIVE, SOFT_DIRTY, UFFD_WP = 1 << 9, 1 << 10, 1 << 11
PMD_PAT = 1 << 12
BIT_52, NX = 1 << 52, 1 << 63
KINDS = {1: "migration", 2: "device-private", 3: "exclusive", 4: "prot-none"}
LEVELS = {4: "PGD", 3: "PUD", 2: "PMD", 1: "PTE"}
SIZES = {3: "1 GiB", 2: "2 MiB", 1: "4 KiB"}
USER_END = 1 << 47
PHYSICAL = (1 << 52) - PAGE
# mm/src/slab.rs, mm/src/space.rs, kernel/src/arch/x86_64/paging.rs.
OBJECT_UNIT, SPACE_KIND = 64, 5
DIRECT_MAP = 0xFFFF_8880_0000_0000
# As many as the kernel's own backtraces have.
MAX_FRAMES = 48

MM = "farpage_kernel::vm::MM"
FOLIO = "farpage_mm::folio::Folio"
SPACE = "farpage_mm::space::Space<farpage_kernel::vm::Machine>"


# Memory


def read(address, length):
    return bytes(gdb.selected_inferior().read_memory(address, length))


def words(data):
    return struct.unpack(f"<{len(data) // 8}Q", data)


class Physical:
    """QEMU's stub reads physical memory while this lasts."""

    def __enter__(self):
        self.switch(1)
        return self

    def __exit__(self, *_):
        self.switch(0)

    @staticmethod
    def switch(on):
        # What was read through page tables must not answer for physical addresses, nor the other way round.
        gdb.execute("maintenance flush dcache", to_string=True)
        answer = gdb.execute(f"maintenance packet Qqemu.PhyMemMode:{on}", to_string=True)
        if "OK" not in answer:
            raise gdb.GdbError("this is not QEMU's stub, or an old one: it does not read physical memory")

    def table(self, frame):
        return words(read(frame * PAGE, PAGE))

    def word(self, frame, index):
        return words(read(frame * PAGE + 8 * index, 8))[0]


def register(name):
    return int(gdb.parse_and_eval(f"${name}")) & (1 << 64) - 1


def root_frame(text=None):
    cr3 = int(text, 0) if text else register("cr3")
    return (cr3 & PHYSICAL) // PAGE


# Entries


def bits(word, *named):
    return "".join(" " + name for bit, name in named if word & bit)


class Entry:
    """A word of a table, decoded by its level (4 for the root)."""

    def __init__(self, word, level):
        self.word, self.level = word, level
        self.kind, self.place, self.frame, self.special, self.attributes = "bad", 0, 0, False, ""
        # Attributes that end a run of equal entries; A and D are the CPU's business.
        self.key = None
        if word == 0:
            self.kind = "none"
        elif word & P and level > 1 and not word & PS:
            self.kind, self.frame = "table", (word & PHYSICAL) // PAGE
        elif word & P and level <= 3:
            self.leaf()
        elif not word & P and level <= 2:
            self.non_present()

    def leaf(self):
        self.kind, self.place = "present", self.word >> 53 & 15
        self.frame = (self.word & PHYSICAL) // PAGE & ~((1 << 9 * (self.level - 1)) - 1)
        self.special = bool(self.word & BIT_52)
        pat = PS if self.level == 1 else PMD_PAT
        self.attribute("r", self.word & RW, not self.word & NX, self.word & A, self.word & D)
        self.key += (self.special, self.word & (PWT | PCD | pat))

    def non_present(self):
        word = self.word
        kind = KINDS.get(word >> 61)
        if kind is None or not word >> 44 & 255 == 255:
            return
        self.kind, self.place, self.frame = kind, word >> 53 & 15, ~word >> 12 & 0xFFFF_FFFF
        self.attribute("-" if word & BIT_52 else "r", word & 2, word & 4, word & 8, word & 16)

    def attribute(self, may_read, write, execute, young, dirty):
        rights = may_read + ("w" if write else "-") + ("x" if execute else "-")
        rest = bits(self.word, (EXCLUSIVE, "exclusive"), (SOFT_DIRTY, "soft-dirty"), (UFFD_WP, "uffd-wp"))
        self.key = (rights, rest)
        self.attributes = rights + rest + (" young" if young else "") + (" dirty" if dirty else "")

    def pages(self):
        return WORDS ** (self.level - 1)

    def at(self):
        return "zero" if self.special else place_name(self.place) + f":{self.frame:#x}"

    def __str__(self):
        if self.kind == "none":
            return "nothing"
        if self.kind == "table":
            names = ((P, "present"), (RW, "writable"), (US, "user"), (A, "accessed"))
            return f"table in frame {self.frame:#x}:{bits(self.word, *names)}"
        if self.kind == "bad":
            return "BAD: no encoder writes this"
        size = SIZES[self.level]
        if self.kind != "present":
            return f"not present: {self.kind}, {size} at {self.at()} {self.attributes}"
        more = bits(self.word, (US, "user"), (G, "global"), (PWT, "PWT"), (PCD, "PCD"))
        return f"present: {size} at {self.at()} {self.attributes}{more}"


def place_name(place):
    if place == 0:
        return "ram"
    return f"coh{place - 9}" if place & 8 else f"dev{place - 1}"


def place_number(name):
    for place in (0, *range(1, 5), *range(9, 13)):
        if place_name(place) == name:
            return place
    raise gdb.GdbError(f"there is no place {name!r}: use ram, dev0 to dev3, or coh0 to coh3")


def index(address, level):
    return address >> 12 + 9 * (level - 1) & WORDS - 1


def user_entries(memory, frame, level=4, base=0):
    """The entries of the user half that are not empty, in address order."""
    table = memory.table(frame)
    for i in range(WORDS // 2 if level == 4 else WORDS):
        entry = Entry(table[i], level)
        address = base + (i << 12 + 9 * (level - 1))
        if entry.kind == "table":
            yield from user_entries(memory, entry.frame, level - 1, address)
        elif entry.kind != "none":
            yield address, entry


def runs(entries):
    """Entries that follow one another in addresses and frames and are equal otherwise: start, first entry, how many."""
    start, first, count = 0, None, 0
    for address, entry in entries:
        if first is not None and follows(start, first, count, address, entry):
            count += 1
            continue
        if first is not None:
            yield start, first, count
        start, first, count = address, entry, 1
    if first is not None:
        yield start, first, count


def follows(start, first, count, address, entry):
    frame = first.frame if first.special else first.frame + count * first.pages()
    same = (entry.kind, entry.level, entry.place, entry.key) == (first.kind, first.level, first.place, first.key)
    return same and first.kind != "bad" and address == start + count * first.pages() * PAGE and entry.frame == frame


# What the debug information knows


def number(value):
    """The number in an atomic, a cell or a newtype."""
    while value.type.code == gdb.TYPE_CODE_STRUCT:
        value = value[value.type.fields()[0]]
    return int(value)


def field(value, *names):
    for name in names:
        try:
            value = value[name]
        except gdb.error as error:
            raise gdb.GdbError(f"{value.type} has no field {name!r} any more: {error}") from error
    return value


def evaluate(text):
    language = gdb.parameter("language")
    gdb.execute("set language rust", to_string=True)
    try:
        return gdb.parse_and_eval(text)
    except gdb.error as error:
        raise gdb.GdbError(f"{text}: {error}; is this the kernel's ELF, and has it booted?") from error
    finally:
        gdb.execute(f"set language {language}", to_string=True)


def typed(name, address):
    try:
        return gdb.Value(address).cast(gdb.lookup_type(name).pointer()).dereference()
    except gdb.error as error:
        raise gdb.GdbError(f"the debug information has no {name}: {error}") from error


def object_at(name, key):
    return typed(name, DIRECT_MAP + key * OBJECT_UNIT)


class Zone:
    """The frame map of a place, as mm/src/framemap.rs lays it out."""

    def __init__(self, place):
        mm = evaluate(MM)
        zone = field(mm, "ram") if place == 0 else field(mm, "devices")[(place & 7) - 1]["zone"]
        if number(field(zone, "map", "status")) != 2 or number(field(zone, "place")) != place:
            raise gdb.GdbError(f"{place_name(place)} has no memory now")
        frame_map = field(zone, "map", "data", "value", "value", "value")
        while "blocks" not in (f.name for f in frame_map.type.fields()):
            frame_map = frame_map[frame_map.type.fields()[0]]
        self.base = number(field(zone, "base"))
        self.blocks, self.nr_blocks = self.slice(frame_map, "blocks")
        self.slots, self.frames = self.slice(frame_map, "slots")

    @staticmethod
    def slice(frame_map, name):
        value = field(frame_map, name)
        return int(field(value, "data_ptr")), int(field(value, "length"))

    def owner(self, frame):
        """What a frame is, and the key of what owns it."""
        at = frame - self.base
        if not 0 <= at < self.frames:
            return "not there", None
        block = words(read(self.blocks + at // WORDS * 8, 8))[0]
        if block & 255 != 2:
            return {0: "reserved", 1: "free"}.get(block & 255, "folio"), block >> 8
        slot = words(read(self.slots + at * 8, 8))[0]
        names = {0: "reserved", 1: "free", 2: "in a CPU's cache of free frames", 3: "folio", 4: "a page table"}
        return names.get(slot & 15, "descriptors"), slot >> 8

    def descriptor_frames(self, kind):
        blocks = words(read(self.blocks, self.nr_blocks * 8))
        for block, word in enumerate(blocks):
            if word & 255 != 2:
                continue
            for i, slot in enumerate(words(read(self.slots + block * PAGE, PAGE))):
                if slot & 15 == 5 and slot >> 8 == kind:
                    yield self.base + block * WORDS + i


# Commands


class Command(gdb.Command):
    """A command whose documentation is its class's."""

    def __init__(self):
        super().__init__(self.name, gdb.COMMAND_DATA)

    def invoke(self, text, _from_tty):
        arguments = gdb.string_to_argv(text)
        least, most = self.takes
        if not least <= len(arguments) <= most:
            raise gdb.GdbError(f"usage: {self.__doc__.splitlines()[0]}")
        try:
            self.run(*arguments)
        except ValueError as error:
            raise gdb.GdbError(f"{error}: write numbers like 0x1000") from error
        except gdb.MemoryError as error:
            raise gdb.GdbError(f"{error}: an entry or a pointer leads out of memory") from error


class Walk(Command):
    """fp-walk ADDRESS [CR3]
The entries on the way to an address, in the table that is loaded or in the one of CR3."""

    name, takes = "fp-walk", (1, 2)

    def run(self, address, cr3=None):
        address, frame = int(address.replace("_", ""), 0) & (1 << 64) - 1, root_frame(cr3)
        with Physical() as memory:
            for level in (4, 3, 2, 1):
                i = index(address, level)
                entry = Entry(memory.word(frame, i), level)
                print(f"{LEVELS[level]} [{i:3}] {entry.word:#018x}  {entry}")
                if entry.kind != "table":
                    return
                frame = entry.frame


class PageTable(Command):
    """fp-pt [CR3]
The user half of the page table: one line per run of equal entries, as the shell's pt prints them."""

    name, takes = "fp-pt", (0, 1)

    def run(self, cr3=None):
        with Physical() as memory:
            found = list(runs(user_entries(memory, root_frame(cr3))))
        for start, first, count in found:
            end = start + count * first.pages() * PAGE
            size = SIZES.get(first.level, "512 GiB")
            at = f"{first.at():<11}" if first.special else first.at()
            what = f"{first.kind:<15} {at} {first.attributes}" if first.kind != "bad" else "BAD"
            print(f"{start:#014x}-{end:#014x} {count:>4} x {size}  {what}")
        if not found:
            print("no entry: nothing there was touched yet")


class Folio(Command):
    """fp-folio FRAME
The folio that owns a frame: 0xf800 or ram:0xf800 in RAM, dev0:0x3e00 in a device's memory."""

    name, takes = "fp-folio", (1, 1)

    def run(self, frame):
        name, _, digits = frame.rpartition(":")
        place, index_there = place_number(name or "ram"), int(digits, 0)
        what, key = Zone(place).owner(index_there)
        if what != "folio":
            print(f"frame {frame} belongs to no folio: {what}")
            return
        folio = object_at(FOLIO, key)
        get = lambda name: number(field(folio, name))
        first, meta = get("frame"), get("meta")
        order, size = meta & 15, PAGE << (meta & 15)
        shown = f"{size >> 20} MiB" if size >> 20 else f"{size >> 10} KiB"
        print(f"folio {place_name(first >> 32)}:{first & 0xFFFF_FFFF:#x}: order {order} ({shown}), key {key:#x}")
        counts = f"references {get('refs')}, entries that map it {get('maps')}"
        print(f"  {counts}, migration entries {get('migs')}, pins {get('pins')}")
        flags = bits(meta, (1 << 8, "dirty"), (1 << 9, "resident"), (1 << 10, "partial")) or " no flags"
        print(f" {flags}, group {meta >> 16 & 255}, driver's word {get('driver'):#x}")


class Spaces(Command):
    """fp-spaces
The address spaces that exist; a star marks the one that is loaded."""

    name, takes = "fp-spaces", (0, 0)

    def run(self):
        loaded, found = root_frame(), 0
        size = gdb.lookup_type(SPACE).sizeof
        for frame in Zone(0).descriptor_frames(SPACE_KIND):
            for i in range(PAGE // size):
                space = typed(SPACE, DIRECT_MAP + frame * PAGE + i * size)
                get = lambda name: number(field(space, name))
                if get("live") != 1:
                    continue
                root, found = get("root_pfn"), found + 1
                mark = "*" if root == loaded else " "
                print(f"{mark} root {root:#x}  cr3 {root * PAGE:#x}  users {get('users')}  faults {get('faults')}")
        if not found:
            print("no address space exists")


class Backtrace(Command):
    """fp-bt [RBP RIP]
The chain of frame pointers, through traps too, with functions and lines; inlined functions first."""

    name, takes = "fp-bt", (0, 2)

    def run(self, rbp=None, rip=None):
        rbp = int(rbp, 0) if rbp else register("rbp")
        pc = int(rip, 0) if rip else register("rip")
        for n in range(MAX_FRAMES):
            # Above the innermost frame an address is where a call returns to: the call itself stands before it.
            self.show(n, pc, pc if n == 0 else pc - 1)
            try:
                rbp, pc = words(read(rbp, 16))
            except gdb.MemoryError:
                return
            if pc == 0 or gdb.block_for_pc(pc - 1) is None:
                return

    @staticmethod
    def show(n, pc, lookup):
        line = gdb.find_pc_line(lookup)
        at = f" at {line.symtab.filename}:{line.line}" if line.symtab else ""
        block, head = gdb.block_for_pc(lookup), f"{n:4}: {pc:#018x}"
        shown = False
        while block is not None and not block.is_global and not block.is_static:
            if block.function is not None:
                print(f"{head} {block.function}{'' if shown else at}")
                head, shown = " " * 24, True
            block = block.superblock
        if not shown:
            print(f"{head} (no symbol)")


for command in (Walk, PageTable, Folio, Spaces, Backtrace):
    command()
