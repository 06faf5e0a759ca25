//! Bytes over a connection, cut anywhere: the answers are those to the messages in them, in order.

use std::cell::RefCell;

use reveille_dns::fuzz::Streams;
use reveille_dns::{Origin, Transport, respond};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use crate::world::{NOW, VIEW, peer, setting};

thread_local! {
    static SERVER: RefCell<(Runtime, Streams)> = RefCell::new({
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let inside = runtime.enter();
        let streams = Streams::new((**VIEW).clone(), NOW);
        drop(inside);
        (runtime, streams)
    });
}

/// First the number of cuts, then the length of each piece, then the room that each side of the connection has, then
/// what the client sends.
pub fn run(data: &[u8]) {
    let Some((&cuts, rest)) = data.split_first() else { return };
    let Some((pieces, rest)) = rest.split_at_checked(usize::from(cuts)) else { return };
    let Some((&room, sent)) = rest.split_first() else { return };
    let expected = answers(sent);
    let got = SERVER.with_borrow(|(runtime, streams)| {
        runtime.block_on(conversation(streams, pieces, usize::from(room) + 1, sent))
    });
    assert_eq!(got, expected, "cut into {pieces:?} and the rest: {sent:02x?}");
}

/// What is to be answered to the whole messages.
fn answers(mut sent: &[u8]) -> Vec<u8> {
    let (mut all, mut out) = (Vec::new(), Vec::new());
    while let Some((length, rest)) = sent.split_first_chunk::<2>()
        && let Some((message, rest)) = rest.split_at_checked(u16::from_be_bytes(*length).into())
    {
        sent = rest;
        if respond(&setting(&VIEW), message, &Origin::new(peer(), Transport::Tcp), &mut out).written.is_some()
        {
            all.extend(u16::try_from(out.len()).expect("it fits into a message").to_be_bytes());
            all.extend(&out);
        }
    }
    all
}

async fn conversation(streams: &Streams, pieces: &[u8], room: usize, mut sent: &[u8]) -> Vec<u8> {
    let (ours, theirs) = tokio::io::duplex(room);
    let server = streams.serve(theirs, peer());
    let (mut from, mut to) = tokio::io::split(ours);
    let writing = async {
        for &piece in pieces {
            let (now, later) = sent.split_at(usize::from(piece).min(sent.len()));
            to.write_all(now).await.expect("the server reads");
            tokio::task::yield_now().await;
            sent = later;
        }
        to.write_all(sent).await.expect("the server reads");
        to.shutdown().await.expect("the server reads");
    };
    let mut got = Vec::new();
    let reading = from.read_to_end(&mut got);
    let (_, _, read) = tokio::join!(server, writing, reading);
    read.expect("the server closes in order");
    got
}
