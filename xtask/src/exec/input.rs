//! What is typed or piped to the program.
//!
//! The serial line carries bytes and knows no end. So the end of the input is the byte [`END`], as a terminal would have it, and
//! an [`END`] or [`QUOTE`] of the input is sent behind a [`QUOTE`]. What comes before the guest has set up its port is lost: so
//! the input begins behind some bytes that nobody misses, and a [`BEGIN`].

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::thread;

/// The input begins (STX).
pub(super) const BEGIN: u8 = 0x02;
/// What stands before it (SYN), more often than a port of 16 bytes that is set up a few times can lose.
const NOTHING: [u8; 128] = [0x16; 128];
/// End of input (EOT).
pub(super) const END: u8 = 0x04;
/// The next byte is as it is (DLE).
pub(super) const QUOTE: u8 = 0x10;

/// Is somebody typing, or is something piped in? An empty device is no input: nobody has to wait for it.
pub(super) fn is_there() -> bool {
    let file = fs::metadata("/dev/stdin").map(|data| data.file_type());
    io::stdin().is_terminal() || file.is_ok_and(|kind| kind.is_file() || kind.is_fifo() || kind.is_socket())
}

/// Passes standard input on to the guest, until one of the two is gone.
pub(super) fn pass_on(mut to: impl Write + Send + 'static) {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        let mut from = io::stdin().lock();
        if to.write_all(&NOTHING).and_then(|()| to.write_all(&[BEGIN])).is_err() {
            return;
        }
        loop {
            match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(len) if to.write_all(&quoted(&bytes[..len])).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
        // A guest that is gone needs no end.
        let _ = to.write_all(&[END]);
        // The line stays open: QEMU would take its closing for the end of its console.
        thread::park();
    });
}

/// Bytes as they go over the line.
pub(super) fn quoted(bytes: &[u8]) -> Vec<u8> {
    let quote = |byte: &u8| [END, QUOTE].contains(byte).then_some(QUOTE);
    bytes.iter().flat_map(|byte| quote(byte).into_iter().chain([*byte])).collect()
}
