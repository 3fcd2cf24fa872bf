//! In-kernel tests of the trap stub and of user access: that a trap leaves no trace, however deep and wherever it comes.
