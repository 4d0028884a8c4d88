//! The promises of a channel into storage, kept by files.

use std::sync::atomic::{AtomicU32, Ordering};

use mig_testkit::conformance::{self, LaterChannel};
use mig_transport::{Connector, Listener};
use mig_transport_file::{FileConnector, FileListener, FileTarget};

#[tokio::test]
async fn files() {
    let dir = std::env::temp_dir().join(format!("mig-filec-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let count = AtomicU32::new(0);
    for offset in [0, 4099] {
        conformance::storage(async || {
            let path = dir.join(count.fetch_add(1, Ordering::Relaxed).to_string());
            let target = FileTarget::new(path).at(offset);
            let writing = FileConnector::new(target.clone()).connect().await.unwrap();
            let reading: LaterChannel =
                Box::pin(async move { FileListener::new(target).accept().await.unwrap() });
            (writing, reading)
        })
        .await;
    }
    std::fs::remove_dir_all(dir).unwrap();
}
