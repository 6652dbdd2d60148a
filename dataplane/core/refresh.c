/* Between batches: adopt newer settings and directive, watch the controller's age, follow peers and slow starts, beat.
 *
 * A block is read whole into the spare copy, checked, and swapped in; one that does not pass is counted by its reason and the last
 * good one stays. A directive is taken when its epoch is the one in the controller block (whoever holds the lock now) or newer
 * than the last one taken, and within an epoch sequences never go back: a controller that lost its lock is not listened to.
 *
 * The watchdog: without a directive, or when the controller's last sign of life (its heartbeat, or the directive's issue) is
 * older than stale_after_ns, the fallback book dispatches. stale_after_ns 0: never for age. A time further in the future than
 * stale_after_ns is garbage and counts as no sign.
 */
#include "../../shm_layout/access.h"
#include "core_private.h"

#define PEER_SILENT_NS 5000000000ULL /* a worker without a beat for this long is gone: its journal is not followed */

static const struct rule *const rules[RULES] = {
    [RULE_MAGLEV] = &rule_maglev, [RULE_ALIAS] = &rule_alias, [RULE_WRR] = &rule_wrr, [RULE_BIDS] = &rule_bids,
    [RULE_CLASSIC] = &rule_classic
};

static void reject(struct balancer *b, uint32_t reason)
{
    COUNT(b->me->rejected[reason < REJECTS ? reason : REJECT_VALUE], 1);
}

static void reject_error(struct balancer *b, int64_t error)
{
    if (error != -SEGMENT_EEMPTY)
        reject(b, error == -SEGMENT_ETORN ? REJECT_TORN : error == -SEGMENT_ECRC ? REJECT_CRC : REJECT_BOUNDS);
}

/* The publications of a block so far. */
static uint64_t published(const struct balancer *b, uint64_t off_block)
{
    return word_acquire(&((const struct block *)(const void *)(b->segment + off_block))->published);
}

/* ---- books ---- */

static void book_forget(struct book *k, uint32_t from, uint32_t to, uint32_t slots)
{
    for (uint32_t i = from; i < to; i++) {
        k->key[i] = KEY_NONE;
        k->step[i] = 0;
        if (i < slots)
            k->credit[i] = 0;
    }
}

static void book_prepare(struct balancer *b, struct book *k, uint32_t rule_id, const struct directive *d)
{
    const struct server_entry *e = entries_of(b->settings);
    const uint64_t *ids = d ? directive_array(d, d->off_ids) : NULL;
    if (k->rule_id != rule_id)
        book_forget(k, 0, scan_padded(b->max_servers), b->max_servers);
    book_forget(k, b->n_slots, scan_padded(b->max_servers), b->max_servers);
    k->rule = rules[rule_id];
    k->rule_id = rule_id;
    for (uint32_t i = 0; i < b->n_slots; i++)
        k->known[i] = ids && i < d->n_servers && ids[i] && ids[i] == e[i].id;
    bool bids = rule_id == RULE_BIDS || rule_id == RULE_CLASSIC;
    k->held_above = d && d->off_reserve && bids ? directive_array(d, d->off_reserve) : NULL;
    k->aging = d && d->off_aging && rule_id == RULE_BIDS && !d->choices ? directive_array(d, d->off_aging) : NULL;
    k->loads = d && d->off_loads ? directive_array(d, d->off_loads) : NULL;
    k->n_loads = k->loads ? d->n_routes : 0;
    for (uint32_t c = 0; d && c < SLA_CLASSES; c++)
        k->sla_reserve[c] = d->sla_reserve[c];
    k->rule->prepare(b, k, d);
    if (k->in_use)
        book_rekey_all(b, k);
}

/* A book that comes into use has not followed the counts until now. */
static void books_choose(struct balancer *b)
{
    bool fallback = b->fallback_active || b->enforcing_percent < 100;
    if (!b->primary.in_use && !b->fallback_active)
        book_rekey_all(b, &b->primary);
    if (!b->fallback.in_use && fallback)
        book_rekey_all(b, &b->fallback);
    b->primary.in_use = !b->fallback_active;
    b->fallback.in_use = fallback;
    STORE(b->me->rule, b->fallback_active ? b->fallback.rule_id : b->primary.rule_id);
    STORE(b->me->fallback_active, b->fallback_active);
}

/* ---- settings ---- */

/* Slot i has another server from now on: this worker's row of it begins anew. Flows of the server before that are still open
 * (there should be none) stay in the in-flight counts, which are the slot's. */
static void slot_reuse(struct balancer *b, uint32_t i, uint64_t id, uint64_t now_ns)
{
    struct server_stats *s = &b->stats[i];
    uint64_t *word = (uint64_t *)(void *)s;
    for (size_t at = 0; at < sizeof *s / 8u; at++)
        if (at != offsetof(struct server_stats, in_flight) / 8u && at != offsetof(struct server_stats, load_in_flight) / 8u)
            word_store(&word[at], 0);
    STORE(s->id, id);
    reservoir_reset(b, i, id);
    /* Time before the server came is nobody's. Fails when a flow came meanwhile: then the word is right. */
    uint64_t old = word_load(&b->words[i].word);
    if (old >> WORD_TIME_BITS == 0)
        __atomic_compare_exchange_n(&b->words[i].word, &old, (now_ns >> WORD_TIME_SHIFT) & WORD_TIME_MASK, false,
                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    book_forget(&b->primary, i, i + 1, b->max_servers);
    book_forget(&b->fallback, i, i + 1, b->max_servers);
}

static float ramp_at(const struct server_entry *e, uint64_t now_ns)
{
    if (!e->slowstart_begin_ns || !e->slowstart_ns || now_ns >= e->slowstart_begin_ns + e->slowstart_ns)
        return 1.0f;
    float passed = now_ns > e->slowstart_begin_ns ? (float)(now_ns - e->slowstart_begin_ns) / (float)e->slowstart_ns : 0.0f;
    return passed > RAMP_LEAST ? passed : RAMP_LEAST;
}

/* May take new flows, leaving aside whether it is full or a backup. */
static bool is_usable(const struct server_entry *e)
{
    return e->id && e->state == SERVER_READY && e->health == HEALTH_UP && e->weight;
}

/* Who takes part: backups only when nobody else is up. */
static void servers_rank(struct balancer *b, uint64_t now_ns)
{
    const struct server_entry *e = entries_of(b->settings);
    uint32_t backup = 1;
    for (uint32_t i = 0; i < b->n_slots; i++)
        if (is_usable(&e[i]) && !e[i].backup)
            backup = 0;
    b->n_ready = b->n_ramping = 0;
    for (uint32_t i = 0; i < b->n_slots; i++) {
        b->limit[i] = 0;
        b->ramp[i] = ramp_at(&e[i], now_ns);
        if (!is_usable(&e[i]) || e[i].backup != backup)
            continue;
        b->limit[i] = e[i].maxconn && e[i].maxconn < IN_FLIGHT_MAX ? e[i].maxconn : IN_FLIGHT_MAX;
        b->ready[b->n_ready++] = i;
        b->n_ramping += b->ramp[i] < 1.0f;
    }
}

static bool settings_adopt(struct balancer *b, uint64_t now_ns)
{
    uint64_t seen = published(b, b->off_settings);
    if (seen == b->settings_seen)
        return false;
    struct settings *next = b->settings_spare, *old = b->settings;
    uint32_t reason;
    int64_t length = segment_read(b->segment, b->off_settings, next, b->settings_room, NULL);
    if (length != -SEGMENT_ETORN)   /* a torn one is tried again at the next refresh */
        b->settings_seen = seen;
    if (length < 0) {
        reject_error(b, length);
        return false;
    }
    if (segment_check_settings(next, (uint64_t)length, b->max_servers, &reason) < 0) {
        reject(b, reason);
        return false;
    }
    uint32_t slots = next->n_slots > b->n_slots ? next->n_slots : b->n_slots;
    for (uint32_t i = 0; i < slots; i++) {
        uint64_t before = i < b->n_slots ? entries_of(old)[i].id : 0, after = i < next->n_slots ? entries_of(next)[i].id : 0;
        if (before != after)
            slot_reuse(b, i, after, now_ns);
    }
    b->settings = next;
    b->settings_spare = old;
    b->n_slots = next->n_slots;
    b->padded = scan_padded(b->n_slots);
    servers_rank(b, now_ns);
    book_prepare(b, &b->fallback, next->fallback_rule, NULL);
    STORE(b->me->settings_version, next->version);
    return true;
}

/* ---- directive ---- */

static bool epoch_is_right(const struct balancer *b, const struct directive *d, uint64_t epoch)
{
    if (d->epoch != epoch)
        return false;
    if (b->have_directive && epoch == b->epoch)
        return d->sequence >= b->directive->sequence;
    return epoch == word_load(&b->controller->epoch) || epoch > b->epoch;
}

/* True: there is a newer one in force. */
static bool directive_adopt(struct balancer *b)
{
    uint64_t seen = published(b, b->off_directive), epoch;
    if (seen == b->directive_seen)
        return false;
    struct directive *next = b->directive_spare;
    uint32_t reason;
    int64_t length = segment_read(b->segment, b->off_directive, next, b->directive_room, &epoch);
    if (length != -SEGMENT_ETORN)
        b->directive_seen = seen;
    if (length < 0) {
        reject_error(b, length);
        return false;
    }
    if (segment_check_directive(next, (uint64_t)length, b->max_servers, b->table_room, &reason) < 0) {
        reject(b, reason);
        return false;
    }
    if (!epoch_is_right(b, next, epoch)) {
        reject(b, REJECT_EPOCH);
        return false;
    }
    b->directive_spare = b->directive;
    b->directive = next;
    b->have_directive = 1;
    b->epoch = epoch;
    b->enforcing_percent = next->enforcing_percent;
    STORE(b->me->directive_sequence, next->sequence);
    STORE(b->me->directive_epoch, epoch);
    return true;
}

static bool controller_is_alive(const struct balancer *b, uint64_t now_ns)
{
    if (!b->have_directive)
        return false;
    uint64_t limit = b->settings->stale_after_ns;
    uint64_t signs[2] = { word_load(&b->controller->heartbeat_ns), b->directive->issued_ns };
    for (int i = 0; i < 2; i++)
        if (limit == 0 || (signs[i] <= now_ns ? now_ns - signs[i] <= limit : signs[i] - now_ns <= limit))
            return true;
    return false;
}

static void watch_controller(struct balancer *b, uint64_t now_ns)
{
    uint32_t fallback = !controller_is_alive(b, now_ns);
    if (fallback == b->fallback_active)
        return;
    b->fallback_active = fallback;
    if (fallback)
        COUNT(b->me->fallback_entered, 1);
}

/* ---- chores ---- */

static bool peer_is_alive(const struct peer *p, uint64_t now_ns)
{
    uint64_t beat = word_load(&p->worker->heartbeat_ns);
    return beat && word_load(&p->worker->started_ns) && (beat > now_ns || now_ns - beat < PEER_SILENT_NS);
}

static void peers_swap(struct balancer *b, uint32_t x, uint32_t y)
{
    struct peer p = b->peers[x];
    b->peers[x] = b->peers[y];
    b->peers[y] = p;
}

/* The first n_peers of the peers are alive. True: one came back, what it did meanwhile is not known. */
static bool peers_count(struct balancer *b, uint64_t now_ns)
{
    bool joined = false;
    for (uint32_t p = 0; p < b->n_peers;) {
        if (peer_is_alive(&b->peers[p], now_ns))
            p++;
        else
            peers_swap(b, p, --b->n_peers);
    }
    for (uint32_t p = b->n_peers; p + 1 < b->max_workers; p++) {
        if (!peer_is_alive(&b->peers[p], now_ns))
            continue;
        b->peers[p].cursor = word_acquire(&b->peers[p].worker->journal_head);
        peers_swap(b, p, b->n_peers++);
        joined = true;
    }
    return joined;
}

/* Servers in slow start come up a little. */
static void ramps_raise(struct balancer *b, uint64_t now_ns)
{
    b->n_ramping = 0;
    for (uint32_t r = 0; r < b->n_ready; r++) {
        uint32_t i = b->ready[r];
        if (b->ramp[i] >= 1.0f)
            continue;
        b->ramp[i] = ramp_at(&entries_of(b->settings)[i], now_ns);
        b->n_ramping += b->ramp[i] < 1.0f;
        balancer_touch(b, i, word_in_flight(b, i));
    }
}

bool balancer_refresh(struct balancer *b, uint64_t now_ns)
{
    word_store(&b->me->heartbeat_ns, now_ns);
    bool settings = settings_adopt(b, now_ns), directive = directive_adopt(b);
    if (b->have_directive && (settings || directive))
        book_prepare(b, &b->primary, b->directive->rule, b->directive);
    watch_controller(b, now_ns);
    if (settings || directive || b->primary.in_use == b->fallback_active)
        books_choose(b);
    if (now_ns >= b->chores_due_ns || b->chores_due_ns - now_ns > CHORES_NS) {
        b->chores_due_ns = now_ns + CHORES_NS;
        if (!b->alone && peers_count(b, now_ns)) {
            if (b->primary.in_use)
                book_rekey_all(b, &b->primary);
            if (b->fallback.in_use)
                book_rekey_all(b, &b->fallback);
        }
        if (b->n_ramping)
            ramps_raise(b, now_ns);
    }
    return settings;
}
