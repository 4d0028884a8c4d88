//! The task that sees a command to its end.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use crate::{
    group::{Group, Phase},
    leader::Leader,
};

/// Between SIGTERM and SIGKILL: half of what a cancel may take.
const KILL_GRACE: Duration = Duration::from_millis(50);
/// For a command whose channel was dropped: it sees the end of its stdin, or a broken pipe, and may pass on what it holds.
const RELEASE_GRACE: Duration = Duration::from_secs(1);
/// For the last words of a group that was killed.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(50);

/// Waits for the command, ends its group when asked, reaps it. `drains` read what it says; they end with this task. If
/// the runtime goes first, dropping `leader` kills the group.
///
/// # Cancel safety
///
/// Dropping it drops the leader, which kills the group and has it reaped.
pub(crate) async fn supervise(mut leader: Leader, mut drains: JoinSet<()>, group: Arc<Group>) {
    let exited = tokio::select! {
        biased;
        ending = leader.exited() => Some(ending),
        () = group.stop_wanted(RELEASE_GRACE) => None,
    };
    let ending = match exited {
        Some(ending) => {
            group.enter(Phase::Exited(ending));
            // What it started may go on and hold the pipes: whoever waits for them sets the bound and asks to stop.
            let stopped = tokio::select! {
                biased;
                () = group.let_go() => false,
                () = group.stop_wanted(RELEASE_GRACE) => true,
            };
            if stopped {
                leader.end_group(KILL_GRACE, group.let_go()).await;
            }
            ending
        }
        None => leader.end_group(KILL_GRACE, group.let_go()).await,
    };
    leader.reap();
    let all_said = async { while drains.join_next().await.is_some() {} };
    // Somebody outside the group may hold stderr open for ever.
    let _in_time = tokio::time::timeout(LAST_WORDS_WAIT, all_said).await;
    group.enter(Phase::Gone(ending));
}
