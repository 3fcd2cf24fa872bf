//! Situations that lists are to come into. Who follows a list with the model notes them; a long run must have met all of them.

/// Everything that [`crate::exercise::Model::note`] is told of where it can be told beforehand.
pub fn situations() -> impl Iterator<Item = &'static str> {
    let accesses = super::borrowers::ACCESSES.iter().flatten();
    super::moves::MEANWHILE.iter().chain(accesses).chain(&OTHERS).copied()
}

const OTHERS: [&str; 21] = [
    "snapshot: forbidden",
    "snapshot: nothing",
    "snapshot: zeros",
    "snapshot: RAM",
    "snapshot: own private",
    "snapshot: private of another device",
    "snapshot: own coherent",
    "snapshot: coherent of another device",
    "snapshot: lent",
    "snapshot: on its way",
    "lent: 2 MiB",
    "lent: 4 KiB",
    "pinned: RAM",
    "pinned: was private",
    "pinned: coherent",
    "pinned for long: RAM",
    "pinned for long: was private",
    "pinned for long: was coherent",
    "evicted: 2 MiB by frames",
    "evicted: small pages by frames",
    "replugged",
];
