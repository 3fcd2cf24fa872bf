//! execve: this program again, with other arguments; and what cannot be run.

use std::env;
use std::ffi::CString;

use farpage_programs::sys::Ret;
use farpage_programs::task::child;
use farpage_programs::{fact, memory, sys};
use libc::{SIG_BLOCK, SIG_IGN, SIGUSR1, SIGUSR2};

/// Runs the group.
pub(crate) fn run() {
    let own = env::current_exe().expect("/proc/self/exe");
    let own = own.to_str().expect("a path of text");
    for arguments in [&["say", "one", "two"][..], &["say"], &["say", "", "with blanks in it"]] {
        fact!("with arguments", "{}", child(|| execve(own, arguments, &["A=1", "B=two"]).0 as i32));
    }
    fact!("through /proc", "{}", child(|| execve("/proc/self/exe", &["say", "again"], &[]).0 as i32));
    let long = "x".repeat(100_000);
    fact!("a long argument", "{}", child(|| execve(own, &["lengths", &long], &[]).0 as i32));
    let many: Vec<&str> = std::iter::once("lengths").chain((0..2000).map(|_| "y")).collect();
    fact!("many arguments", "{}", child(|| execve(own, &many, &[]).0 as i32));
    inherited(own);
    errors(own);
}

/// What the program does that has been started so.
pub(crate) fn started(args: &[String]) {
    match args.first().map(String::as_str) {
        Some("say") => {
            println!("started: {:?}", &args[1..]);
            let variables: Vec<String> = env::vars().map(|(name, value)| format!("{name}={value}")).collect();
            println!("environment: {variables:?}");
        }
        Some("lengths") => {
            println!("started: {} {}", args.len(), args.iter().map(String::len).sum::<usize>());
        }
        Some("state") => state(args),
        _ => println!("started strangely: {args:?}"),
    }
}

/// `execve` of `suite started ARGS`.
fn execve(path: &str, args: &[&str], env: &[&str]) -> Ret {
    let texts = |texts: &[&str]| -> Vec<CString> {
        texts.iter().map(|text| CString::new(*text).expect("no zero byte")).collect()
    };
    let pointers = |texts: &[CString]| -> Vec<*const i8> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let all: Vec<&str> = ["suite", "started"].into_iter().chain(args.iter().copied()).collect();
    let (path, args, env) = (CString::new(path).expect("no zero byte"), texts(&all), texts(env));
    let (args, env) = (pointers(&args), pointers(&env));
    sys!(SYS_execve, path.as_ptr(), args.as_ptr(), env.as_ptr())
}

extern "C" fn nothing(_signal: i32) {}

fn inherited(own: &str) {
    let status = child(|| {
        // SAFETY: a handler that does nothing.
        unsafe { libc::signal(SIGUSR1, nothing as *const () as usize) };
        // SAFETY: a signal that is ignored.
        unsafe { libc::signal(SIGUSR2, SIG_IGN) };
        let set = 1_u64 << (SIGUSR1 - 1);
        let _ = sys!(SYS_rt_sigprocmask, SIG_BLOCK, &raw const set, 0, 8);
        let _ = sys!(SYS_kill, sys!(SYS_getpid).0, SIGUSR1);
        let kept = sys!(SYS_dup, 1).value("dup");
        let lost = sys!(SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC, 0).value("dup");
        let page = memory::anon(4096);
        let [pid, kept, lost, page] =
            [sys!(SYS_getpid).0 as u64, kept, lost, page].map(|number| number.to_string());
        execve(own, &["state", &pid, &kept, &lost, &page], &[]).0 as i32
    });
    fact!("what an execve keeps", "{status}");
    let status = child(|| {
        let run = || execve(own, &["say", "from a thread"], &[]).0 as i32;
        std::thread::scope(|scope| scope.spawn(run).join().unwrap_or(1))
    });
    fact!("from a thread", "{status}");
}

fn state(args: &[String]) {
    let number = |n: usize| args.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    memory::catch_faults();
    println!("the same process: {}", sys!(SYS_getpid).0 as u64 == number(1));
    println!(
        "descriptors: {} {}",
        sys!(SYS_fcntl, number(2), libc::F_GETFD),
        sys!(SYS_fcntl, number(3), libc::F_GETFD)
    );
    let mut action = [0_u64; 4];
    let _ = sys!(SYS_rt_sigaction, SIGUSR1, 0, action.as_mut_ptr(), 8);
    print!("handlers: {}", action[0]);
    let _ = sys!(SYS_rt_sigaction, SIGUSR2, 0, action.as_mut_ptr(), 8);
    println!(" {}", action[0]);
    let (mut mask, mut pending) = (0_u64, 0_u64);
    let _ = sys!(SYS_rt_sigprocmask, SIG_BLOCK, 0, &raw mut mask, 8);
    let _ = sys!(SYS_rt_sigpending, &raw mut pending, 8);
    println!("blocked {mask:#x} pending {pending:#x}");
}

fn errors(own: &str) {
    let file = env::temp_dir().join(format!("farpage-exec-{}", std::process::id()));
    let file = file.to_str().expect("a path of text");
    std::fs::write(file, "neither a program nor a script").expect("a file");
    fact!("not there", "{}", execve("/nothing/here", &[], &[]));
    fact!("a directory", "{}", execve("/", &[], &[]));
    fact!("a file that must not be run", "{}", execve(file, &[], &[]));
    let path = CString::new(file).expect("no zero byte");
    let _ = sys!(SYS_chmod, path.as_ptr(), 0o755);
    fact!("no program", "{}", execve(file, &[], &[]));
    std::fs::write(
        file,
        "\x7fELF and then nothing of the kind, for more than the length of a header of an ELF file",
    )
    .expect("a file");
    fact!("hardly a program", "{}", execve(file, &[], &[]));
    std::fs::remove_file(file).expect("a file");
    let path = CString::new(own).expect("no zero byte");
    fact!("a wild path", "{}", sys!(SYS_execve, 0x1000, 0, 0));
    fact!("wild arguments", "{}", sys!(SYS_execve, path.as_ptr(), 0x1000, 0));
    fact!("a wild argument", "{}", sys!(SYS_execve, path.as_ptr(), [0x1000_u64, 0].as_ptr(), 0));
    fact!("a wild environment", "{}", sys!(SYS_execve, path.as_ptr(), 0, 0x1000));
    fact!("no path", "{}", execve("", &[], &[]));
    let huge = "z".repeat(200_000);
    fact!("an argument that is too long", "{}", execve(own, &[&huge], &[]));
}
