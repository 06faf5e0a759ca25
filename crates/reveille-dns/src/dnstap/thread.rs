//! A thread with a runtime of its own.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

/// Runs what `work` makes to its end on a new thread, beside the tasks that answer and not among them.
///
/// # Errors
/// There is no thread, or no runtime, to be had.
pub(super) fn spawn<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (began, begun) = mpsc::channel();
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        // Made and dropped here: inside another runtime it may not be dropped.
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = began.send(Ok(()));
                runtime.block_on(work());
            }
            Err(error) => {
                let _ = began.send(Err(error));
            }
        }
    })?;
    begun.recv().unwrap_or_else(|_| Err(io::Error::other("the thread has ended")))?;
    Ok(thread)
}
