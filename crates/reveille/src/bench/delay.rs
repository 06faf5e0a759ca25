//! A server that is farther away than it is: a TCP relay on loopback that keeps what clients send for a while.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// Most that is read at a time.
const READ_BYTES_MAX: usize = 64 << 10;

/// Relays to `server` from the address that is returned, with every request `later`. Ends with the runtime.
///
/// # Errors
/// If no port can be had.
pub async fn delayed(server: SocketAddr, later: Duration) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(relay(client, server, later));
        }
    });
    Ok(address)
}

async fn relay(mut client: TcpStream, server: SocketAddr, later: Duration) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.split(), server.split());
    let requests = async {
        let mut buffer = vec![0; READ_BYTES_MAX];
        loop {
            let count = from_client.read(&mut buffer).await?;
            if count == 0 {
                return to_server.shutdown().await;
            }
            sleep(later).await;
            to_server.write_all(buffer.get(..count).unwrap_or_default()).await?;
        }
    };
    let answers = copy(&mut from_server, &mut to_client);
    tokio::try_join!(requests, answers).map(|_| ())
}
