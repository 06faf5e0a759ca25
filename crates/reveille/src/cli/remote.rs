//! Speaking to a running daemon.

use reveille_api::Client;
use reveille_api::token_file::{Places, find_token};
use tokio::runtime::{Builder, Runtime};

use super::Daemon;

impl Daemon {
    /// A client of the daemon, with the token that is to be had.
    ///
    /// # Errors
    /// If the address is none, or a token was named and cannot be used.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let client = Client::new(&self.api)?;
        let addresses = client.addresses().await?;
        let variable = std::env::var("REVEILLE_TOKEN").ok();
        let token =
            find_token(self.token_file.as_deref(), variable.as_deref(), &Places::of_process(), &addresses)?;
        Ok(client.with_token(token))
    }
}

/// A runtime for one command.
///
/// # Errors
/// If the system gives none.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
