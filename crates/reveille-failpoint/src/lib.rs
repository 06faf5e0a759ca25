//! Places at which tests make the program end, fail or wait, as a kill, a full disk or a slow disk would.
//!
//! A place is a line `failpoint!("depot.put.manifest");` between two steps. Without the feature `failpoints` it is
//! nothing. With it, the place asks, first, what the thread's own test said ([`on_this_thread`]), then what the
//! environment said when the process began:
//!
//! ```text
//! REVEILLE_FAILPOINTS="depot.put.manifest=kill;vm.capture.sealed=3*kill;depot.fetch.chunk=wait:200"
//! ```
//!
//! `kill` ends the process at once by SIGKILL, `panic` unwinds, `wait:MS` blocks the thread; `3*` means the third time
//! only. Builds for users are without the feature: it is a development dependency of the crates that have places, so that
//! it is on in whatever is built together with their tests.

/// What happens at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Go,
    /// The process is gone, as by `kill -9`.
    Kill,
    /// The thread unwinds: what a kill is within one process.
    Panic,
    /// The thread blocks for so many ms.
    Wait(u64),
}

/// A place; see the module.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::reached($name)
    };
}

/// The program has come to the place `name`.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reached(_name: &'static str) {}

#[cfg(feature = "failpoints")]
pub use built_in::{Guard, on_this_thread, reached};

#[cfg(feature = "failpoints")]
mod built_in {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    use super::Outcome;

    const VARIABLE: &str = "REVEILLE_FAILPOINTS";
    type Script = Box<dyn FnMut(&'static str) -> Outcome>;

    /// What the environment says of one place: how often it is still passed, and what happens then.
    type Orders = BTreeMap<String, (u64, Outcome)>;

    static ORDERS: LazyLock<Mutex<Orders>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        Mutex::new(text.split(';').filter_map(order).collect())
    });
    thread_local! {
        static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
    }

    /// Takes a thread's script away when it is dropped.
    #[must_use]
    pub struct Guard(());

    impl Drop for Guard {
        fn drop(&mut self) {
            SCRIPT.with_borrow_mut(|script| *script = None);
        }
    }

    /// From now on `script` says what happens at the places that this thread comes to.
    pub fn on_this_thread(script: impl FnMut(&'static str) -> Outcome + 'static) -> Guard {
        SCRIPT.with_borrow_mut(|place| *place = Some(Box::new(script)));
        Guard(())
    }

    /// The program has come to the place `name`.
    #[allow(clippy::panic)]
    pub fn reached(name: &'static str) {
        let own = SCRIPT.with_borrow_mut(|script| script.as_mut().map(|script| script(name)));
        match own.unwrap_or_else(|| ordered(name)) {
            Outcome::Go => {}
            Outcome::Kill => {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
            Outcome::Panic => panic!("failpoint {name}"),
            Outcome::Wait(ms) => std::thread::sleep(Duration::from_millis(ms)),
        }
    }

    fn ordered(name: &str) -> Outcome {
        let mut orders = ORDERS.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((passes, outcome)) = orders.get_mut(name) else { return Outcome::Go };
        if *passes == 1 {
            // An order with a count is carried out once.
            let outcome = *outcome;
            orders.remove(name);
            return outcome;
        }
        if *passes == 0 {
            return *outcome;
        }
        *passes -= 1;
        Outcome::Go
    }

    /// `name=kill`, `name=3*panic`, `name=wait:200`; what is none of these is reported and passed over.
    fn order(text: &str) -> Option<(String, (u64, Outcome))> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        let parsed = || {
            let (name, what) = text.split_once('=')?;
            let (passes, what) = match what.split_once('*') {
                Some((count, what)) => (count.parse().ok()?, what),
                None => (0, what),
            };
            let outcome = match what {
                "kill" => Outcome::Kill,
                "panic" => Outcome::Panic,
                other => Outcome::Wait(other.strip_prefix("wait:")?.parse().ok()?),
            };
            Some((name.to_owned(), (passes, outcome)))
        };
        let order = parsed();
        if order.is_none() {
            eprintln!("{VARIABLE}: `{text}` is no order; write name=kill, name=3*panic or name=wait:200");
        }
        order
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn orders_say_the_place_the_time_and_what_happens() {
            assert_eq!(order("a.b=kill"), Some(("a.b".to_owned(), (0, Outcome::Kill))));
            assert_eq!(order(" a=3*panic"), Some(("a".to_owned(), (3, Outcome::Panic))));
            assert_eq!(order("a=wait:20"), Some(("a".to_owned(), (0, Outcome::Wait(20)))));
            assert_eq!(order("a=explode"), None);
        }

        #[test]
        fn a_threads_script_sees_every_place_until_it_is_dropped() {
            let guard = on_this_thread(|name| if name == "x" { Outcome::Panic } else { Outcome::Go });
            reached("y");
            assert!(std::panic::catch_unwind(|| reached("x")).is_err());
            drop(guard);
            reached("x");
        }
    }
}
