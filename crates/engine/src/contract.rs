//! The contract of the stores: what `EventLog`, `Leases`, `WorkQueue`, `Definitions`, `Files`, `BlobRegistry`,
//! `Idempotency`, `Chunks`, `Ledger` and `Resources` promise, as tests. That of the bell is in [`bells`], between two
//! processes' ends instead of a
//! [`Subject`].
//!
//! A store is made testable by a [`Subject`] and held to every case by [`contract_tests!`](crate::contract_tests).
//! A case gets a fresh, empty store and panics where a promise is broken. Time is the store's and is moved by the
//! subject; no case sleeps. Histories come from the real rules of a session ([`story`]), so that what is stored is
//! what the engine stores.
//!
//! [`blobs`] holds a suite of its own, for whatever keeps bytes: [`blob_contract_tests!`](crate::blob_contract_tests).

pub mod appends;
pub mod bells;
pub mod blobs;
pub mod chunks;
pub mod claims;
pub mod definitions;
pub mod files;
pub mod histories;
pub mod idempotency;
pub mod keys;
pub mod queue;
pub mod reading;
pub mod registry;
pub mod resources;
pub mod story;
pub mod tracks;

use std::sync::Arc;

use async_trait::async_trait;

use crate::port::{
    BlobRegistry, Blobs, Chunks, Definitions, EventLog, Files, Idempotency, Leases, Ledger, Resources, Tracks,
    WorkQueue,
};

/// Everything that one store implements.
pub trait Store:
    EventLog + Leases + Ledger + WorkQueue + Definitions + Files + BlobRegistry + Idempotency + Chunks + Resources
{
}

impl<S> Store for S where
    S: EventLog + Leases + Ledger + WorkQueue + Definitions + Files + BlobRegistry + Idempotency + Chunks + Resources
{
}

/// A store under test, with what only a test may do to it.
#[async_trait]
pub trait Subject: Send + Sync {
    fn store(&self) -> Arc<dyn Store>;

    /// The store's blobs, which it announces before it puts them.
    fn blobs(&self) -> Arc<dyn Blobs>;

    /// Moves the store's time on by this many milliseconds.
    async fn advance(&self, millis: i64);

    /// Makes every snapshot one of a format that this build does not know.
    /// Returns false if the store keeps no snapshots.
    async fn spoil_snapshots(&self) -> bool;

    /// The weight that the store's claims obey, unless it is a store of one process.
    fn tracks(&self) -> Option<Arc<dyn Tracks>> {
        None
    }

    /// Whether a replica that stops beating is judged dead. A store of one process knows better.
    fn silence_is_death(&self) -> bool;
}

/// Emits one `#[tokio::test]` for each case. `$make` is the path, from the crate's root, of an async function that
/// returns a fresh `impl Subject`, or `None` where the backend cannot be had. With `bell` before it, an `impl Ends`.
#[macro_export]
macro_rules! contract_tests {
    (bell $make:path) => {
        $crate::contract_tests! { $make;
            bells: frames_arrive_whole_and_in_order, a_frame_is_heard_once, topics_are_kept_apart,
                listeners_come_and_go;
        }
    };
    ($make:path) => {
        $crate::contract_tests! { $make;
            appends: a_first_append_creates_the_session, an_append_elsewhere_is_a_conflict,
                one_of_many_concurrent_appends_wins, a_lost_claim_is_fenced, a_wish_for_the_claim_is_granted_once,
                side_rows_change_without_records, a_token_that_ended_is_told_so,
                a_refused_append_leaves_nothing_behind, a_refused_append_spares_its_neighbours,
                hostile_text_survives, large_content_survives;
            reading: records_are_read_in_pages, a_processed_event_comes_with_its_content, events_are_filtered,
                events_are_paged_both_ways, sessions_are_filtered, sessions_are_paged_both_ways,
                positions_come_in_one_answer, an_unreadable_snapshot_is_folded_again,
                deleted_sessions_are_purged, what_is_not_there_is_none;
            claims: only_due_sessions_are_claimed, the_longest_waiting_comes_first,
                concurrent_claims_share_nothing, a_released_session_is_free_again, a_wake_up_comes_at_its_time,
                a_wake_up_frees_nothing_that_is_owned, the_claims_of_a_retired_replica_are_taken_over,
                the_claims_of_a_silent_replica_are_taken_over, a_judge_watches_before_it_judges,
                a_judge_that_slept_judges_nobody,
                a_release_cannot_miss_a_post, an_old_claim_releases_nothing,
                a_session_that_was_handed_over_is_told_once, a_lost_turn_is_found;
            tracks: a_replica_claims_sessions_of_its_track, a_weight_moves_no_turn_that_runs,
                a_wish_for_the_claim_obeys_the_weight, an_abandoned_track_is_anybodys, an_old_weight_is_refused;
            queue: a_session_has_one_item, items_are_handed_out_in_order, an_item_is_handed_out_again,
                an_acknowledged_item_is_held, a_heartbeat_names_the_last_one, a_holder_is_asked_to_stop,
                the_end_of_an_item_ends_its_token, a_lease_runs_out, an_item_in_the_queue_is_replaced, a_lease_that_ends_is_queued_again,
                a_revived_lease_is_not_ended, a_result_and_the_end_of_its_lease_exclude_each_other,
                a_lease_can_be_ended_early, a_holder_ends_its_own_lease, the_end_of_a_session_stops_its_item,
                pools_see_their_own_items, metadata_is_replaced, figures_are_counted, items_are_listed;
            chunks: a_session_refers_to_its_own_chunks, a_token_that_ended_refers_to_nothing,
                old_references_are_forgotten, a_purged_session_refers_to_nothing, a_chunk_that_was_collected_has_to_be_put_again,
                a_chunk_is_garbage_a_day_after_nobody_refers_to_it;
            definitions: versions_follow_each_other, of_two_writers_of_a_version_one_wins,
                an_archived_agent_stays_as_it_was, agents_are_listed, names_of_environments_are_unique,
                an_environment_changes_from_what_was_seen, an_environment_in_use_stays,
                keys_are_found_until_revoked, definitions_hold_any_text;
            idempotency: a_key_has_one_effect, of_twins_one_appends_and_both_get_its_answer,
                a_refused_append_keeps_no_answer, keys_belong_to_a_credential, an_answer_is_kept_for_a_day,
                old_answers_go_in_batches, a_request_that_changes_nothing_is_kept,
                a_definition_is_written_once_for_a_key, a_refused_definition_keeps_no_answer,
                of_twins_one_writes_a_definition;
            keys: so_many_sessions_of_a_key_run_at_once, concurrent_starts_share_the_limit,
                a_reservation_is_settled_once, a_cap_refuses_what_does_not_fit, a_day_has_a_ledger_of_its_own,
                a_session_leaves_no_reservation_open, concurrent_reservations_are_all_counted;
            histories: a_history_folds_to_its_snapshot;
            files: a_file_is_what_was_stored, a_file_needs_its_content, a_file_is_stored_once_for_a_key, files_are_listed,
                content_stays_while_a_file_has_it, expired_content_is_let_go, files_of_a_session_go_with_it;
            resources: a_session_is_created_with_its_resources, resources_come_and_go,
                a_session_is_given_what_its_resources_hold,
                a_resource_that_cannot_be_is_refused, of_two_resources_at_one_path_one_is_made,
                a_resource_is_added_once_for_a_key, a_copy_goes_with_its_resource_alone,
                a_deleted_session_leaves_no_files, a_path_has_one_output, an_output_needs_a_token_and_its_content,
                outputs_are_counted;
            registry: what_nothing_refers_to_goes_after_a_day, an_announcement_keeps_a_blob_for_a_day,
                a_sealed_blob_is_announced, large_records_keep_their_blobs, a_purged_session_leaves_garbage;
        }
    };
    ($make:path; $($module:ident: $($case:ident),+;)+) => {$(
        mod $module {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if let Some(subject) = ($make)().await {
                    $crate::contract::$module::$case(&subject).await;
                }
            }
        )+}
    )+};
}

/// Emits one test for each case of [`contract::blobs`](crate::contract::blobs). `$make` is the path, from the crate's
/// root, of an async function that returns a fresh `impl BlobSubject`, or `None` where the backend cannot be had.
#[macro_export]
macro_rules! blob_contract_tests {
    ($make:path) => {
        $crate::contract_tests! { $make;
            blobs: a_blob_is_found_by_the_hash_of_its_bytes, equal_bytes_are_kept_once,
                a_large_blob_comes_and_goes_in_pieces, an_abandoned_blob_leaves_nothing, a_removed_blob_is_gone,
                a_changed_blob_is_refused, a_cut_blob_is_refused, many_may_put_the_same;
        }
    };
}
