//! From a path to a place in the tree.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use spin::Once;

use super::{Node, Path, Target, tree};
use crate::linux::errno::Errno;
use crate::linux::process::Process;

/// Bytes of a name at most (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Symbolic links that one path may lead through (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;

/// A node, and how it was reached (Linux: a dentry). It stays what it is when names are moved.
#[derive(Clone)]
pub(in crate::linux) struct Place(Arc<Step>);

struct Step {
    node: Arc<dyn Node>,
    name: String,
    /// None for the root.
    parent: Option<Place>,
}

impl Drop for Step {
    /// Parent by parent, not one inside the other: the way may be longer than a stack.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut step) = next.and_then(|place| Arc::into_inner(place.0)) {
            next = step.parent.take();
        }
    }
}

/// The root of the tree.
pub(in crate::linux) fn root() -> Place {
    static ROOT: Once<Place> = Once::new();
    ROOT.call_once(|| Place(Arc::new(Step { node: tree::build(), name: String::new(), parent: None })))
        .clone()
}

impl Place {
    pub(in crate::linux) fn node(&self) -> &Arc<dyn Node> {
        &self.0.node
    }

    /// The place of `node`, which has this name here.
    pub(in crate::linux) fn child(&self, name: &str, node: Arc<dyn Node>) -> Self {
        Self(Arc::new(Step { node, name: name.into(), parent: Some(self.clone()) }))
    }

    /// What `..` means here.
    pub(in crate::linux) fn parent(&self) -> Self {
        self.0.parent.clone().unwrap_or_else(|| self.clone())
    }

    /// The path from the root.
    pub(in crate::linux) fn path(&self) -> String {
        let mut names = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.0.parent {
            names.push(at.0.name.as_str());
            at = parent;
        }
        let mut path = String::new();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        if path.is_empty() { "/".into() } else { path }
    }

    /// Is this, or a directory above it, `other`?
    pub(in crate::linux) fn is_in(&self, other: &Arc<dyn Node>) -> bool {
        let mut at = Some(self);
        while let Some(place) = at {
            if Arc::ptr_eq(&place.0.node, other) {
                return true;
            }
            at = place.0.parent.as_ref();
        }
        false
    }
}

/// The last name of a path.
pub(in crate::linux) enum Last {
    /// It ends in a name.
    Name {
        parent: Place,
        name: String,
        /// A slash follows: it must be a directory.
        slash: bool,
        found: Option<Place>,
    },
    /// It ends in `.` or `..`, or is the root.
    Dots(Place),
}

/// A path on its way.
pub(in crate::linux) struct Walk {
    at: Place,
    /// What is left, the next name last.
    names: Vec<String>,
    slash: bool,
    links: u32,
}

impl Walk {
    /// The beginning of `path`.
    ///
    /// # Errors
    /// ENOENT for an empty path; those of the directory that it begins at.
    pub(in crate::linux) fn of(_process: &Process, path: &Path<'_>) -> Result<Self, Errno> {
        if path.text.is_empty() {
            return Err(Errno::ENOENT);
        }
        let at = if path.text.starts_with('/') { root() } else { path.from.clone()? };
        if at.node().directory().is_none() {
            return Err(Errno::ENOTDIR);
        }
        let mut walk = Self { at, names: Vec::new(), slash: path.text.ends_with('/'), links: 0 };
        walk.push(path.text);
        Ok(walk)
    }

    fn push(&mut self, text: &str) {
        self.names.extend(text.rsplit('/').filter(|name| !name.is_empty()).map(String::from));
    }

    /// What the path leads to, links included.
    ///
    /// # Errors
    /// Those of a look-up.
    pub(in crate::linux) fn follow(self, process: &Process) -> Result<Place, Errno> {
        found(self.last_followed(process)?)
    }

    /// What the path leads to; a link at its end is what it leads to, unless a slash follows.
    ///
    /// # Errors
    /// Those of a look-up.
    pub(in crate::linux) fn here(self, process: &Process) -> Result<Place, Errno> {
        if self.slash { self.follow(process) } else { found(self.last(process)?) }
    }

    /// The last name, links at it followed.
    ///
    /// # Errors
    /// Those of a look-up, but for ENOENT of that name.
    pub(in crate::linux) fn last_followed(mut self, process: &Process) -> Result<Last, Errno> {
        loop {
            let last = self.next_last(process)?;
            if let Last::Name { parent, found: Some(place), slash, .. } = &last
                && let Some(target) = place.node().link(process)
            {
                match target? {
                    Target::Path(text) => self.enter_link(parent.clone(), &text)?,
                    Target::Place(place, _) => {
                        if *slash && place.node().directory().is_none() {
                            return Err(Errno::ENOTDIR);
                        }
                        let (parent, name) = (place.parent(), place.0.name.clone());
                        return Ok(Last::Name { parent, name, slash: false, found: Some(place) });
                    }
                }
                continue;
            }
            return Ok(last);
        }
    }

    /// The last name; what it stands for may be a link.
    ///
    /// # Errors
    /// As [`Walk::last_followed`].
    pub(in crate::linux) fn last(mut self, process: &Process) -> Result<Last, Errno> {
        self.next_last(process)
    }

    fn next_last(&mut self, process: &Process) -> Result<Last, Errno> {
        loop {
            let Some(name) = self.names.pop() else { return Ok(Last::Dots(self.at.clone())) };
            if self.at.node().directory().is_none() {
                return Err(Errno::ENOTDIR);
            }
            if name == "." || name == ".." {
                if name == ".." {
                    self.at = self.at.parent();
                }
                continue;
            }
            let found = self.look_up(process, &name);
            if self.names.is_empty() {
                let found = match found {
                    Err(Errno::ENOENT) => None,
                    found => Some(found?),
                };
                let last =
                    Last::Name { parent: self.at.clone(), name, slash: self.slash, found: found.clone() };
                if let Some(place) = found {
                    self.at = place;
                }
                return Ok(last);
            }
            let place = found?;
            match place.node().link(process) {
                None => self.at = place,
                Some(target) => match target? {
                    Target::Path(text) => self.enter_link(self.at.clone(), &text)?,
                    Target::Place(place, _) => self.at = place,
                },
            }
        }
    }

    fn look_up(&self, process: &Process, name: &str) -> Result<Place, Errno> {
        let directory = self.at.node().directory().ok_or(Errno::ENOTDIR)?;
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(self.at.child(name, directory.find(process, name)?))
    }

    /// The path goes on with what a link in `directory` says.
    fn enter_link(&mut self, directory: Place, text: &str) -> Result<(), Errno> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::ELOOP);
        }
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        self.slash |= self.names.is_empty() && text.ends_with('/');
        self.at = if text.starts_with('/') { root() } else { directory };
        self.push(text);
        Ok(())
    }
}

fn found(last: Last) -> Result<Place, Errno> {
    match last {
        Last::Dots(place) => Ok(place),
        Last::Name { found: None, .. } => Err(Errno::ENOENT),
        Last::Name { found: Some(place), slash, .. } => {
            let is_link_or_directory = place.node().directory().is_some()
                || place.node().stat().mode & super::kind::MASK == super::kind::LINK;
            if slash && !is_link_or_directory { Err(Errno::ENOTDIR) } else { Ok(place) }
        }
    }
}
