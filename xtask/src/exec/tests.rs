//! What is decided before and after the machine runs.

use super::archive::{GuestFile, check};
use super::input::{END, QUOTE, quoted};
use super::{Whose, whose};
use std::fs;

#[test]
fn the_programs_lines_are_told_from_the_kernels() {
    assert_eq!(whose("hello", true), Whose::Programs);
    assert_eq!(whose("[WARN  linux::calls] system call 334", true), Whose::Kernels);
    assert_eq!(whose("[WARN] of the program", true), Whose::Programs);
    assert_eq!(whose("@exit status=3", true), Whose::End(3));
    assert_eq!(whose("@exit signal=11", true), Whose::End(139));
    assert_eq!(whose("@exit status=3", false), Whose::Programs, "in the middle of a line");
    assert_eq!(whose("@exit status=300", true), Whose::Programs);
    assert_eq!(whose("@else status=3", true), Whose::Programs);
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
