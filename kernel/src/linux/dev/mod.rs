//! Devices: files of `/dev`, and others that are driven by ioctl.

mod command;
pub(super) mod dmirror;
pub(super) mod gup_test;
