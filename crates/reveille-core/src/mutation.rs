//! Deliberate bugs that a test switches on, to see that it would find them.
//!
//! A bug is a condition `mutation::is_on("its-name")` where it would be made. Without the feature `mutations` it is
//! `false` and nothing is left of it. With it, a thread says which one it wants.

/// Whether this thread has switched that bug on.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub fn is_on(_name: &'static str) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use built_in::{is_on, switch_on};

#[cfg(feature = "mutations")]
mod built_in {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// From now on this thread has that bug, or none.
    pub fn switch_on(name: Option<&'static str>) {
        ON.set(name);
    }

    /// Whether this thread has switched that bug on.
    pub fn is_on(name: &'static str) -> bool {
        ON.get() == Some(name)
    }
}
