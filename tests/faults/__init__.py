"""What the balancer survives, by the rows of the fault matrix, and the tests that show it.

Rows 18 to 31 are the controller, shared memory and policies. Every test of a row that names tests/faults or
tests/learned/test_live.py runs a whole balancer with real backends under load; the others are the properties behind.
"""

FAULTS = "tests/faults"
LIVE = "tests/learned/test_live.py"

ROWS: dict[int, tuple[str, ...]] = {
    # controller killed: traffic goes on by the last directive, then by the fallback; restarted with backoff
    18: (
        f"{FAULTS}/test_processes.py::test_a_killed_controller_costs_no_request_and_comes_back",
        f"{FAULTS}/test_processes.py::test_a_new_controller_is_told_the_policies_in_force",
        "tests/controlplane/test_deployment.py::test_a_new_controller_goes_on_with_the_trial",
    ),
    # controller hung: judged by its heartbeat
    19: (f"{FAULTS}/test_processes.py::test_a_hung_controller_gives_way_to_the_fallback_and_is_replaced",),
    # shared memory stale from an earlier run
    20: (
        f"{FAULTS}/test_processes.py::test_a_stale_segment_is_replaced_and_a_live_ones_owner_is_respected",
        "tests/shm_layout/test_mismatch.py::test_a_recycled_pid_is_not_the_owner",
    ),
    # layout of another version
    21: (
        f"{FAULTS}/test_segment.py::test_a_controller_of_another_layout_is_refused_and_the_data_plane_goes_on",
        "tests/shm_layout/test_mismatch.py::test_a_header_that_differs_is_refused_with_both_values",
    ),
    # shared memory corrupted while running
    22: (
        f"{FAULTS}/test_segment.py::test_random_bits_in_the_blocks_cost_no_request",
        f"{FAULTS}/engine/test_machine.py::test_garbage_in_the_settings_and_the_directive_is_never_believed",
    ),
    # torn write, writer dies in the middle
    23: (f"{FAULTS}/test_telemetry.py::test_a_writer_that_dies_in_the_middle_of_a_directive_is_recovered_from",),
    # two controllers
    24: (
        f"{FAULTS}/test_processes.py::test_a_second_controller_is_refused_with_a_message",
        "tests/controlplane/test_controller.py::test_a_second_controller_is_refused_unless_it_takes_over",
        "tests/core/test_adoption.py::test_a_controller_that_lost_its_lock_is_not_listened_to",
    ),
    # NaN, infinite, negative, all-zero weights
    25: (
        f"{FAULTS}/test_policies.py::test_decisions_that_are_no_numbers_demote_and_cost_no_request",
        "tests/controlplane/test_controller_policies.py::test_a_bad_decision_leaves_the_last_good_one_in_force",
    ),
    # extreme but finite corrections: clamped, bounded steps, a healthy server is not starved
    26: (
        f"{LIVE}::test_an_adversarial_policy_loses_no_request",
        "tests/learned/test_correction.py::test_bounds_hold_from_update_to_update_whatever_is_asked",
        "tests/learned/test_learned.py::test_an_adversarial_network_stays_within_the_bounds",
        "tests/learned/test_learned.py::test_a_healthy_server_is_not_starved",
    ),
    # policy file missing, truncated, wrong
    27: (
        f"{LIVE}::test_a_file_that_is_not_right_is_refused_and_traffic_goes_on",
        f"{LIVE}::test_a_file_that_is_damaged_while_its_policy_runs_changes_nothing_until_a_restart",
        "tests/learned/test_policy_file.py::test_any_other_byte_anywhere_is_refused_or_the_same_policy",
        "tests/learned/test_policy_file.py::test_a_pickle_is_not_opened",
    ),
    # policy of other features or numbers of servers
    28: (
        "tests/learned/test_policy_file.py::test_a_manifest_that_is_wrong_is_refused_by_its_key",
        "tests/learned/test_learned.py::test_the_base_policy_decides_alone_where_the_network_may_not",
        "tests/controlplane/test_deployment.py::test_a_policy_that_trusts_its_heuristic_more_is_on_record_once",
    ),
    # policy slower than its deadline
    29: (
        f"{FAULTS}/test_policies.py::test_a_policy_slower_than_its_deadline_is_dropped_and_then_demoted",
        f"{FAULTS}/test_policies.py::test_a_slow_policy_on_trial_is_given_up_for_its_incumbent",
    ),
    # policy oscillates or harms: rolled back by itself, cools down
    30: (
        f"{FAULTS}/test_policies.py::test_a_policy_that_harms_is_rolled_back_by_itself_and_cools_down",
        f"{FAULTS}/test_policies.py::test_a_switchback_on_live_traffic_ends_and_keeps_the_winner",
        "tests/controlplane/test_guard.py::test_a_clearly_longer_tail_is",
    ),
    # telemetry lost, delayed, gamed. Nothing that a server says of itself is an input of a policy
    31: (
        f"{FAULTS}/test_telemetry.py::test_measurements_that_are_lost_count_as_nothing_known_never_as_no_delay",
        f"{FAULTS}/test_servers.py::test_a_server_that_fails_fast_is_ejected_and_does_not_attract_the_traffic",
        f"{FAULTS}/engine/test_servers.py::test_a_server_that_hangs_is_timed_out_and_its_time_is_counted",
    ),
}
