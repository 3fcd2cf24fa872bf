//! What is decided before and after the machine runs.

use super::archive::{GuestFile, check};
use super::input::{END, QUOTE, quoted};
use super::{is_kernels, last_word};
use std::fs;

#[test]
fn the_programs_lines_are_told_from_the_kernels() {
    assert!(is_kernels("[WARN  linux::calls] system call 334") && is_kernels("@pc n=0 addr=0x10"));
    assert!(!is_kernels("hello") && !is_kernels("[WARN] of the program") && !is_kernels("@else status=3"));
}

#[test]
fn the_end_is_found_on_any_line() {
    assert_eq!(last_word(b"\x1e@exit status=3\n"), Some((&b""[..], 3)));
    assert_eq!(last_word(b"no line end\x1e@exit signal=11\n"), Some((&b"no line end"[..], 139)));
    assert_eq!(last_word(b"@exit status=3\n"), None, "the program's own");
    assert_eq!(last_word(b"\x1e@exit status=300\n"), None);
    assert_eq!(last_word(b"\x1e\xff\n"), None);
}

#[test]
fn input_is_quoted() {
    assert_eq!(quoted(b"ab\n"), b"ab\n");
    assert_eq!(quoted(&[1, END, 2, QUOTE]), [1, QUOTE, END, 2, QUOTE, QUOTE]);
}

#[test]
fn a_file_has_two_names() {
    let file = |text| GuestFile::read(text).map(|_| ());
    assert_eq!(file("Cargo.toml:/tmp/x"), Ok(()));
    assert_eq!(file("a:b:/tmp/x"), Ok(()));
    for wrong in ["Cargo.toml", "Cargo.toml:", ":/x", "a:/", "a:/x/", "a:x"] {
        assert!(file(wrong).unwrap_err().contains("HOST:GUEST"), "{wrong}");
    }
}

#[test]
fn only_whole_static_programs_are_run() {
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(check(&own).unwrap_err().contains("dynamic linker"), "the tests are linked dynamically");
    assert!(check(b"#!/bin/sh\n").unwrap_err().contains("no ELF file"));
    assert!(check(&own[..40]).unwrap_err().contains("build it"));
    let mut other = own.clone();
    other[18] = 183; // e_machine: AArch64
    assert!(check(&other).unwrap_err().contains("for x86-64"));
    let mut object = own;
    object[16] = 1; // e_type: relocatable
    assert!(check(&object).unwrap_err().contains("link it"));
}
