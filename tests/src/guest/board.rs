//! Where results are put up as they come, and waited for.

use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use ktest::stream::{Outcome, Test};

/// Results by name of test.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    results: HashMap<String, Test>,
    closed: bool,
}

impl Board {
    /// Puts up a result. The first one stays: what was reported is not taken back.
    pub fn put(&self, test: Test) {
        self.lock().results.entry(test.name.clone()).or_insert(test);
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits for a result. A test that the board closes without has never run.
    #[must_use]
    pub fn wait(&self, name: &str) -> Test {
        let absent = |state: &mut State| !state.closed && !state.results.contains_key(name);
        let state = self.changed.wait_while(self.lock(), absent).unwrap_or_else(PoisonError::into_inner);
        state.results.get(name).cloned().unwrap_or_else(|| Test {
            name: name.to_owned(),
            outcome: Outcome::NeverRan,
            console: Vec::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
