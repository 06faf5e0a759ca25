//! The layers of a guest's disk, as a live QEMU process has them.

use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::disk::node;
use super::layout::STATE;
use super::qmp::QmpError;
use super::vm::Vm;

/// A layer that is to be put on top of a guest's disk.
#[derive(Debug)]
pub struct NewLayer {
    /// Its name.
    pub name: String,
    /// Name of the layer that is uppermost by now.
    pub below: String,
    /// It is on top.
    pub used: AtomicBool,
}

impl Vm {
    /// Opens the file of a new, empty layer of the guest's disk.
    pub async fn add_layer(&self, name: &str) -> Result<(), QmpError> {
        let node = node(name, STATE, false, &Value::Null);
        self.qmp()?.command("blockdev-add", node).await.map(|_| ())
    }

    /// Whether QEMU has the file of a layer open.
    pub async fn has_layer(&self, name: &str) -> Result<bool, QmpError> {
        let nodes = self.qmp()?.command("query-named-block-nodes", json!({ "flat": true })).await?;
        let is_it = |node: &Value| node.get("node-name").and_then(Value::as_str) == Some(name);
        Ok(nodes.as_array().is_none_or(|nodes| nodes.iter().any(is_it)))
    }

    /// Which layer the guest writes to.
    pub async fn top_layer(&self) -> Result<String, QmpError> {
        self.disk(|inserted| inserted.get("node-name")?.as_str().map(str::to_owned)).await
    }

    /// How many files lie below the layer that the guest writes to, the base among them.
    pub async fn layers_below(&self) -> Result<u64, QmpError> {
        self.disk(|inserted| inserted.get("backing_file_depth")?.as_u64()).await
    }

    async fn disk<T>(&self, look: impl Fn(&Value) -> Option<T>) -> Result<T, QmpError> {
        let disks = self.qmp()?.command("query-block", json!({})).await?;
        let disks = disks.as_array().map(Vec::as_slice).unwrap_or_default();
        let seen = disks.iter().find_map(|disk| look(disk.get("inserted")?));
        seen.ok_or_else(|| QmpError::Protocol("query-block without the guest's disk".to_owned()))
    }

    /// Closes the file of a layer that is not used.
    pub async fn drop_layer(&self, name: &str) -> Result<(), QmpError> {
        self.qmp()?.command("blockdev-del", json!({ "node-name": name })).await.map(|_| ())
    }

    /// Puts an empty layer on top of the guest's disk. What was written before is flushed, and does not change again.
    pub async fn put_on_top(&self, layer: &NewLayer) -> Result<(), QmpError> {
        let data = json!({ "node": layer.below, "overlay": layer.name });
        let action = json!({ "type": "blockdev-snapshot", "data": data });
        self.qmp()?.command("transaction", json!({ "actions": [action] })).await.map(|_| ())
    }
}
