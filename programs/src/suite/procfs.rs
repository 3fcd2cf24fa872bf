//! What `/proc` and `/sys` say, where it must be so: what can be derived from what the program has done.

use std::fs;

use farpage_programs::memory::{PRIVATE, RW, SHARED, anon, mmap, mprotect, munmap, reserve, store};
use farpage_programs::task::child;
use farpage_programs::{HUGE, PAGE, fact, maps, memory, sys};
use libc::{MADV_DONTNEED, MAP_FIXED, PROT_EXEC, PROT_READ};

/// Runs the group.
pub(crate) fn run() {
    memory::catch_faults();
    areas();
    counted();
    pagemap();
    machine();
    itself();
}

fn areas() {
    let arena = reserve(16 * PAGE);
    let _ = mmap(arena + PAGE, 2 * PAGE, RW, PRIVATE | MAP_FIXED);
    let _ = mmap(arena + 4 * PAGE, 2 * PAGE, PROT_READ, SHARED | MAP_FIXED);
    let _ = mmap(arena + 6 * PAGE, PAGE, PROT_READ | PROT_EXEC, PRIVATE | MAP_FIXED);
    let _ = munmap(arena + 9 * PAGE, PAGE);
    fact!("maps", "{}", maps::line(arena, 16 * PAGE));
    let _ = mprotect(arena, 16 * PAGE, RW);
    fact!("after a change that ended at a hole", "{}", maps::line(arena, 16 * PAGE));
    let text = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut last = 0;
    let mut sorted = true;
    for line in text.lines() {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).unwrap_or_default();
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        sorted &= last <= number(from) && number(from) < number(to);
        last = number(to);
    }
    fact!("in order", "{sorted}");
    fact!("the stack is named", "{}", text.lines().filter(|line| line.ends_with("[stack]")).count());
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let here =
        text.lines().any(|line| line.ends_with(own.to_str().unwrap_or("?")) && line.contains(" r-xp "));
    fact!("the program's text is of its file", "{here}");
    let local = 0_u64;
    let at = (&raw const local).addr() as u64;
    fact!("a local variable lies in what may be written", "{}", maps::line(at & !(PAGE - 1), PAGE));
}

/// A field of the area that begins at `start`, in kB.
fn field(start: u64, name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/smaps").ok()?;
    let begin = format!("{start:x}-");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&begin)).skip(1);
    let line = lines
        .by_ref()
        .take_while(|line| line.split(' ').next().is_some_and(|key| key.ends_with(':')))
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn counted() {
    let arena = reserve(16 * PAGE);
    let base = mmap(arena + 2 * PAGE, 8 * PAGE, RW, PRIVATE | MAP_FIXED).value("fixed");
    let shown = |name: &str| {
        let fields: Vec<String> =
            ["Size", "Rss", "Anonymous", "Referenced", "AnonHugePages", "Swap", "KernelPageSize"]
                .into_iter()
                .map(|name| {
                    format!(
                        "{name} {}",
                        field(base, name).map_or("missing".into(), |value| value.to_string())
                    )
                })
                .collect();
        fact!(name, "{}", fields.join(", "));
    };
    shown("nothing touched");
    (0..4).for_each(|page| store(base + page * PAGE, 1).expect("a page"));
    shown("four pages written");
    let _ = memory::load(base + 5 * PAGE);
    shown("one read");
    let _ = memory::madvise(base, 2 * PAGE, MADV_DONTNEED);
    shown("two given back");
    let status = child(|| {
        store(base + 2 * PAGE, 2).expect("a page");
        field(base, "Rss").unwrap_or(0) as i32
    });
    fact!("a child that has copied one", "{status}");
    shown("its parent");
}

/// Present, swapped, shared or of a file, exclusive.
fn entry(addr: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut bytes = [0; 8];
    let read = fs::File::open("/proc/self/pagemap").and_then(|mut file| {
        file.seek(SeekFrom::Start(addr / PAGE * 8))?;
        file.read_exact(&mut bytes)
    });
    if let Err(error) = read {
        return error.to_string();
    }
    let word = u64::from_le_bytes(bytes);
    let bit = |n: u64| word >> n & 1;
    format!("present {} swapped {} file {} exclusive {}", bit(63), bit(62), bit(61), bit(56))
}

fn pagemap() {
    let base = anon(4 * PAGE);
    fact!("not touched", "{}", entry(base));
    store(base, 1).expect("a page");
    fact!("written", "{}", entry(base));
    let _ = memory::load(base + PAGE);
    fact!("read", "{}", entry(base + PAGE).split(" exclusive").next().unwrap_or_default());
    let status = child(|| {
        println!("child: {}", entry(base));
        store(base, 2).expect("a page");
        println!("child, after a write: {}", entry(base));
        0
    });
    fact!("after a child", "{status}; {}", entry(base));
    let shared = mmap(0, PAGE, RW, SHARED).value("shared");
    store(shared, 1).expect("a page");
    fact!("shared", "{}", entry(shared));
    fact!("not mapped", "{}", {
        let _ = munmap(base, 4 * PAGE);
        entry(base)
    });
    let mut words = [1_u64; 4];
    let fd = sys!(SYS_openat, libc::AT_FDCWD, c"/proc/self/pagemap".as_ptr(), 0).value("pagemap");
    let read = |len: u64, at: u64| sys!(SYS_pread64, fd, words.as_ptr(), len, at);
    fact!("half an entry", "{} {}", read(4, 0), read(8, 4));
    fact!("several", "{}", read(32, shared / PAGE * 8));
    fact!("into nowhere", "{}", sys!(SYS_pread64, fd, 0x1000, 8, 0));
    words[0] = 0;
    fact!("closed", "{} {}", sys!(SYS_close, fd), words[0]);
}

fn machine() {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    fact!("Hugepagesize", "{:?}", value("Hugepagesize:"));
    let (total, free, available) = (value("MemTotal:"), value("MemFree:"), value("MemAvailable:"));
    fact!("memory", "{} {} {}", total > Some(0), free <= total, available <= total);
    fact!(
        "what there must be",
        "{}",
        ["AnonHugePages:", "HugePages_Total:", "HugePages_Free:", "SwapTotal:"]
            .map(|name| value(name).is_some())
            .iter()
            .all(|there| *there)
    );
    let count = |name: &str| -> Option<u64> {
        let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    let before = count("pgfault");
    let base = anon(64 * PAGE);
    (0..64).for_each(|page| store(base + page * PAGE, 1).expect("a page"));
    let after = count("pgfault");
    fact!("faults are counted", "{}", before.zip(after).is_some_and(|(before, after)| after >= before + 64));
    let names = [
        "nr_free_pages",
        "nr_anon_pages",
        "pgmigrate_success",
        "pgmigrate_fail",
        "thp_fault_alloc",
        "thp_split_page",
        "thp_split_pmd",
    ];
    let missing: Vec<&str> = names.into_iter().filter(|name| count(name).is_none()).collect();
    fact!("counters that are missing", "{missing:?}");
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let plain: String = enabled.chars().filter(|c| !"[]".contains(*c)).collect();
    fact!("large pages", "{:?}, one is chosen: {}", plain, enabled.matches('[').count() == 1);
    fact!(
        "their size",
        "{:?}",
        fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unwrap_or_default()
    );
    let mut sizes: Vec<String> = fs::read_dir("/sys/kernel/mm/hugepages")
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    sizes.retain(|name| name == "hugepages-2048kB");
    fact!("a pool of them", "{sizes:?}");
    let number = |name: &str| {
        fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    fact!(
        "free are no more than there are",
        "{}",
        number("free_hugepages").is_some() && number("free_hugepages") <= number("nr_hugepages")
    );
    let large = reserve(2 * HUGE);
    fact!("a place for one", "{}", large.is_multiple_of(HUGE));
}

fn itself() {
    let name = fs::read_link("/proc/self/exe").unwrap_or_default();
    fact!("its own file can be read", "{}", fs::read(&name).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF")));
    fact!(
        "and through /proc",
        "{}",
        fs::read("/proc/self/exe").is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
    );
    let mut bytes = [0_u8; 4];
    fact!("a name that is cut", "{}", sys!(SYS_readlink, c"/proc/self/exe".as_ptr(), bytes.as_mut_ptr(), 4));
    fact!("into nowhere", "{}", sys!(SYS_readlink, c"/proc/self/exe".as_ptr(), 0x1000, 4));
    fact!("no room", "{}", sys!(SYS_readlink, c"/proc/self/exe".as_ptr(), bytes.as_mut_ptr(), 0));
    fact!("no link", "{}", sys!(SYS_readlink, c"/proc/self/maps".as_ptr(), bytes.as_mut_ptr(), 4));
    fact!("not there", "{}", sys!(SYS_readlink, c"/proc/self/nothing".as_ptr(), bytes.as_mut_ptr(), 4));
    let pid = sys!(SYS_getpid).0;
    let by_number = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    fact!("by number", "{}", by_number.contains("[stack]"));
    fact!("of nobody", "{}", fs::read_to_string("/proc/1073741823/maps").is_err());
    fact!(
        "what cannot be written",
        "{}",
        sys!(
            SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/maps".as_ptr(),
            libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL
        )
    );
}
