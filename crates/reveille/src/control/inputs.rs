//! Where the loop's work comes from.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use reveille_dns::WakeAsk;
use reveille_dns::update::UpdateAsk;
use reveille_net::{RelayEvent, RelayEvents};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::Message;

/// Where the loop's work comes from.
pub struct Inputs {
    /// Questions for services that do not run.
    pub asks: mpsc::Receiver<WakeAsk>,
    /// Clients at gates that are closed.
    pub relay: RelayEvents,
    /// Dynamic updates of static records.
    pub updates: mpsc::Receiver<UpdateAsk>,
    /// Reports and commands.
    pub inbox: mpsc::Receiver<Message>,
}

/// What the loop does next.
pub(super) enum Next {
    Ask(WakeAsk),
    Relay(RelayEvent),
    Update(Box<UpdateAsk>),
    /// `None`: everybody who could send is gone.
    Message(Option<Message>),
    /// It is time.
    Due,
}

/// Whose turn it is to be looked at first: the source after the one that was served last. So none waits for ever behind
/// another, and what happens next depends on nothing but what has happened.
#[derive(Debug, Default)]
pub(super) struct Turns(usize);

/// Sources, the timer among them.
const SOURCES: usize = 5;

impl Inputs {
    /// Waits for what comes next, with the timer at `due`; without updates unless they are taken. Cancel-safe.
    pub(super) async fn next(
        &mut self,
        turns: &mut Turns,
        takes_updates: bool,
        due: Option<Instant>,
    ) -> Next {
        let mut timer = pin!(async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        });
        poll_fn(|context| {
            for step in 0..SOURCES {
                let source = (turns.0 + step) % SOURCES;
                let next = match source {
                    0 => open(self.asks.poll_recv(context).map(|ask| ask.map(Next::Ask))),
                    1 => open(self.relay.poll_recv(context).map(|event| event.map(Next::Relay))),
                    2 if takes_updates => open(
                        self.updates
                            .poll_recv(context)
                            .map(|update| update.map(|update| Next::Update(Box::new(update)))),
                    ),
                    2 => Poll::Pending,
                    3 => self.inbox.poll_recv(context).map(Next::Message),
                    _ => poll_timer(timer.as_mut(), context),
                };
                if next.is_ready() {
                    turns.0 = source + 1;
                    return next;
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// These end before the loop does: a stop takes those away who ask.
fn open(next: Poll<Option<Next>>) -> Poll<Next> {
    match next {
        Poll::Ready(Some(next)) => Poll::Ready(next),
        Poll::Ready(None) | Poll::Pending => Poll::Pending,
    }
}

fn poll_timer(timer: std::pin::Pin<&mut impl Future<Output = ()>>, context: &mut Context<'_>) -> Poll<Next> {
    timer.poll(context).map(|()| Next::Due)
}
