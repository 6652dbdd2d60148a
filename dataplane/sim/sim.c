/* The simulator's event loop: flows arrive, are dispatched by the core, served, and closed.
 *
 * What can happen next is one of: the next candidate of the arrival process, the earliest instant of any server (kept in a
 * tournament tree: a change at one server costs a walk of log2(servers) to the root), and the earliest of the scheduled
 * events, the balancers' tick and the end of the run (one number, `pause_ns`). At one instant servers go first, then
 * arrivals, then the rest.
 *
 * Always: a job is in exactly one place: in service, in a queue, on a link, waiting at its balancer, or free.
 */
#include "world.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define JOBS_IN_CHUNK 1024

/* The segments' zero means never, so simulated time begins later: 1 s. */
#define EPOCH_NS 1000000000ULL

uint64_t sim_epoch_ns(void)
{
    return EPOCH_NS;
}

uint64_t sim_now_ns(const struct sim *sim)
{
    return sim->now_ns + EPOCH_NS;
}

void sim_touch(struct sim *sim, uint32_t server)
{
    uint32_t i = sim->leaves + server;
    uint64_t *tree = sim->tree;
    tree[i] = server_next_ns(&sim->servers[server]);
    while (i > 1) {
        uint64_t a = tree[i], b = tree[i ^ 1], least = a < b ? a : b;
        i >>= 1;
        if (tree[i] == least)
            break;
        tree[i] = least;
    }
}

/* The server at the tree's root; the lowest slot of several. */
static uint32_t first_server(const struct sim *sim)
{
    uint32_t i = 1;
    while (i < sim->leaves) {
        i *= 2;
        i += sim->tree[i] != sim->tree[i / 2];
    }
    return i - sim->leaves;
}

static struct job *job_take(struct sim *sim)
{
    if (sim->free_jobs == NULL) {
        struct job_chunk *chunk = malloc(sizeof *chunk + JOBS_IN_CHUNK * sizeof(struct job));
        if (chunk == NULL)
            return NULL;
        chunk->next = sim->chunks;
        sim->chunks = chunk;
        for (uint32_t i = JOBS_IN_CHUNK; i-- > 0;) {
            chunk->jobs[i].flow.server = NO_SERVER;
            chunk->jobs[i].next = sim->free_jobs;
            sim->free_jobs = &chunk->jobs[i];
        }
    }
    struct job *j = sim->free_jobs;
    sim->free_jobs = j->next;
    return j;
}

/* The flow has ended; server is NO_SERVER when it never had one. */
static void finish(struct sim *sim, struct job *j, uint32_t server, uint32_t outcome)
{
    if (outcome == OUTCOME_OK)
        sim->totals.fct_sum_ns += (double)(sim->now_ns - j->arrived_ns);
    sim->totals.closed[outcome]++;
    if (j->number < sim->config.records_max) {
        struct sim_record *r = &sim->config.records[j->number];
        r->closed_ns = sim->now_ns;
        r->server = server;
        r->outcome = (uint8_t)outcome;
        r->retries = (uint8_t)j->retries;
    }
    j->next = sim->free_jobs;
    sim->free_jobs = j;
}

static void write_ring(struct sim *sim, const struct job *j, enum outcome outcome)
{
    struct flow_record r;
    memset(&r, 0, sizeof r);
    r.opened_ns = j->flow.opened_ns;
    r.dispatched_ns = j->flow.assigned_ns;
    r.connected_ns = r.dispatched_ns + 2 * sim->servers[j->flow.server].delay_ns;   /* a handshake is once there and back */
    r.sla = (uint8_t)j->sla;
    r.closed_ns = sim->now_ns + EPOCH_NS;
    r.first_byte_ns = outcome == OUTCOME_OK ? r.closed_ns : 0;
    r.server_id = j->flow.server_id;
    r.server = j->flow.server;
    r.found = j->flow.found;
    r.outcome = outcome;
    r.retries = j->retries;
    r.termination = '-';
    balancer_record(sim->balancers[j->balancer], &r, "", 0);
}

static void release_waiting(struct sim *sim);

static void close_flow(struct sim *sim, struct job *j, enum outcome outcome)
{
    uint32_t server = j->flow.server;
    if (sim->config.rings != 0)
        write_ring(sim, j, outcome);
    flow_close(sim->balancers[j->balancer], &j->flow, sim->now_ns + EPOCH_NS, 0, 0, outcome);
    sim->totals.in_flight--;
    finish(sim, j, server, outcome);
    if (sim->totals.waiting > 0)
        release_waiting(sim);
}

/* How far a flow has come. */
enum placed { PLACED, PLACE_FULL, PLACE_HELD, PLACE_YIELDS };

/* What a flow that is held was offered. */
struct offer {
    float bid, idle_bid;
};

/* Of each class that waits, one flow goes after so many of better classes, whatever else waits: bronze is deferred, not starved. */
#define PASSED_MAX 8

/* Flows that wait before one of this class that comes now, over all workers that see the same servers. */
static uint32_t waiting_before(const struct sim *sim, uint32_t balancer, uint32_t sla)
{
    uint64_t n = 0;
    for (uint32_t b = 0; b < sim->config.n_balancers; b++)
        for (uint32_t c = 0; c <= sla && sim->segments[b] == sim->segments[balancer]; c++)
            n += sim->waiting[b].n[c];
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

/* Give a flow to servers until one takes it or its retries are spent; or say why it has to wait, and what it was offered. */
static enum placed place(struct sim *sim, struct job *j, uint32_t avoid, uint32_t waiting, bool newcomer, struct offer *offer)
{
    uint64_t now_ns = sim->now_ns + EPOCH_NS;
    struct balancer *b = sim->balancers[j->balancer];
    for (;;) {
        double load = sim->config.load_per_ns > 0 ? j->work_ns * sim->config.load_per_ns : 1.0;
        struct flow_key key = { .hash = j->key, .load = (float)load, .avoid = avoid, .sla = j->sla, .waiting = waiting };
        for (uint32_t sla = 0; sla < SLA_CLASSES && newcomer; sla++)
            key.queued[sla] = sim->waiting[j->balancer].n[sla];
        struct award award = balancer_dispatch(b, &key, now_ns);
        if (award.server >= sim->config.n_servers) {
            *offer = (struct offer){ award.bid, award.idle_bid };
            if (award.full != 0)
                return award.held == HELD_NOT ? PLACE_FULL : award.held == HELD_DEAR ? PLACE_HELD : PLACE_YIELDS;
            finish(sim, j, NO_SERVER, SIM_REFUSED);
            return PLACED;
        }
        struct server *s = &sim->servers[award.server];
        flow_open(b, &j->flow, award.server, key.load, j->arrived_ns + EPOCH_NS, now_ns);
        sim->totals.in_flight++;
        if (j->number < sim->config.records_max)
            sim->config.records[j->number].server = award.server;
        if (s->delay_ns > 0) {
            j->at_ns = sim->now_ns + s->delay_ns;
            job_append(&s->there, j);
            sim_touch(sim, award.server);
            return PLACED;
        }
        int refused = server_enter(s, j, sim->now_ns);
        if (refused == 0) {
            sim_touch(sim, award.server);
            return PLACED;
        }
        if (refused < 0) {
            sim->error = -ENOMEM;
            refused = OUTCOME_SERVER_ABORT;
        }
        if (refused != OUTCOME_CONNECT_FAILED || j->retries >= sim->config.retries) {
            close_flow(sim, j, (enum outcome)refused);
            return PLACED;
        }
        flow_retry(b, &j->flow, now_ns, OUTCOME_CONNECT_FAILED);
        sim->totals.in_flight--;
        sim->totals.retries++;
        j->retries++;
        avoid = award.server;
    }
}

/* The worker's gauges of its queue, which the controller reads. */
static void count_waiting(struct sim *sim, uint32_t balancer, uint32_t sla, int32_t change)
{
    struct waiting *w = &sim->waiting[balancer];
    struct worker *me = balancer_worker(sim->balancers[balancer]);
    w->n[sla] += (uint32_t)change;
    sim->totals.waiting += (uint64_t)(int64_t)change;
    __atomic_store_n(&me->queued_class[sla], w->n[sla], __ATOMIC_RELAXED);
    __atomic_store_n(&me->queued, me->queued + (uint64_t)(int64_t)change, __ATOMIC_RELAXED);
}

/* A flow that no server has room for, or that the reserve holds, waits at its balancer, or is refused. */
static void place_or_wait(struct sim *sim, struct job *j, uint32_t avoid)
{
    struct offer offer;
    enum placed placed = place(sim, j, avoid, waiting_before(sim, j->balancer, j->sla), true, &offer);
    if (placed == PLACED)
        return;
    struct waiting *w = &sim->waiting[j->balancer];
    if ((uint64_t)w->n[0] + w->n[1] + w->n[2] >= sim->config.queue_slots) {
        finish(sim, j, NO_SERVER, SIM_REFUSED);
        return;
    }
    j->next = NULL;
    j->prev = w->tail[j->sla];
    if (j->prev != NULL)
        j->prev->next = j;
    else
        w->head[j->sla] = j;
    w->tail[j->sla] = j;
    count_waiting(sim, j->balancer, j->sla, 1);
    if (placed == PLACE_YIELDS)
        release_waiting(sim);
}

/* Let this waiting flow go if a server takes it; waiting: how many wait before it. */
static enum placed release(struct sim *sim, struct job *j, uint32_t waiting, struct offer *offer)
{
    struct waiting *w = &sim->waiting[j->balancer];
    uint32_t sla = j->sla, balancer = j->balancer;
    /* Out of the list first: it may end at once and be another flow's then. */
    struct job *prev = j->prev, *next = j->next;
    *(prev != NULL ? &prev->next : &w->head[sla]) = next;
    *(next != NULL ? &next->prev : &w->tail[sla]) = prev;
    enum placed placed = place(sim, j, NO_SERVER, waiting, false, offer);
    if (placed != PLACED) {
        *(prev != NULL ? &prev->next : &w->head[sla]) = j;
        *(next != NULL ? &next->prev : &w->tail[sla]) = j;
        j->prev = prev;
        j->next = next;
        return placed;
    }
    count_waiting(sim, balancer, sla, -1);
    w->passed[sla] = 0;
    for (uint32_t worse = sla + 1; worse < SLA_CLASSES; worse++)
        w->passed[worse] += w->head[worse] != NULL;
    return PLACED;
}

/* The flow that a server is offered first: the oldest of the best class, but for one that too many have passed. */
static struct job *first_waiting(const struct waiting *w)
{
    struct job *first = NULL;
    for (uint32_t sla = SLA_CLASSES; sla-- > 0;)
        if (w->head[sla] != NULL && (first == NULL || w->passed[first->sla] < PASSED_MAX))
            first = w->head[sla];
    return first;
}

/* Where enough flows of some class wait to take the server on offer: the first of all that would take it idle. NULL: too few. */
static struct job *first_willing(const struct sim *sim, uint32_t balancer, struct offer offer, uint32_t *waiting)
{
    const struct waiting *w = &sim->waiting[balancer];
    struct job *found = NULL;
    bool enough = false;
    for (uint32_t sla = 0; sla < SLA_CLASSES; sla++) {
        uint32_t last = waiting_before(sim, balancer, sla), before = last - w->n[sla];
        uint32_t least = balancer_waiting_for(sim->balancers[balancer], sla, offer.bid);
        uint32_t idle = balancer_waiting_for(sim->balancers[balancer], sla, offer.idle_bid), place = idle < least ? idle : least;
        enough |= w->n[sla] > 0 && least < last;
        if (found != NULL || w->n[sla] == 0 || place >= last || least == UINT32_MAX)
            continue;
        *waiting = least > before ? least : before;
        for (found = w->head[sla]; before < place; before++)
            found = found->next;
    }
    return enough ? found : NULL;
}

/* One balancer's queue moves on. Who comes first is offered what is free as if nobody waited before it; a server too dear for it
 * goes to the first of the others that has enough before it. */
static void release_at(struct sim *sim, uint32_t balancer)
{
    struct waiting *w = &sim->waiting[balancer];
    struct job *j;
    while ((j = first_waiting(w)) != NULL) {
        struct offer offer;
        uint32_t waiting = 0;
        enum placed placed = release(sim, j, 0, &offer);
        if (placed == PLACE_HELD && (j = first_willing(sim, balancer, offer, &waiting)) != NULL)
            placed = release(sim, j, waiting, &offer);
        if (placed != PLACED)
            return;
    }
}

/* A place may have come free: the balancers' queues move on, each in its order. */
static void release_waiting(struct sim *sim)
{
    if (sim->releasing)
        return; /* a flow that fails at once closes inside place(): the loop below sees its place */
    sim->releasing = true;
    for (uint32_t b = 0; b < sim->config.n_balancers; b++)
        release_at(sim, b);
    sim->releasing = false;
}

/* The flow's fate at the server is known: the balancer sees it a link's delay later. */
static void send_back(struct sim *sim, struct job *j, struct server *s, uint32_t outcome)
{
    if (s->delay_ns == 0) {
        close_flow(sim, j, (enum outcome)outcome);
        return;
    }
    j->outcome = (uint16_t)outcome;
    j->at_ns = sim->now_ns + s->delay_ns;
    job_append(&s->back, j);
}

/* What is back at the balancer. */
static void arrive_back(struct sim *sim, struct job *j)
{
    if (j->outcome != OUTCOME_CONNECT_FAILED || j->retries >= sim->config.retries) {
        close_flow(sim, j, (enum outcome)j->outcome);
        return;
    }
    uint32_t server = j->flow.server;
    flow_retry(sim->balancers[j->balancer], &j->flow, sim->now_ns + EPOCH_NS, OUTCOME_CONNECT_FAILED);
    sim->totals.in_flight--;
    sim->totals.retries++;
    j->retries++;
    place_or_wait(sim, j, server);
}

/* One thing happens at the server whose turn it is. */
static void serve(struct sim *sim)
{
    uint32_t i = first_server(sim);
    struct server *s = &sim->servers[i];
    if (s->delay_ns > 0 && s->back.head != NULL && s->back.head->at_ns <= sim->now_ns) {
        struct job *j = job_pop(&s->back);
        sim_touch(sim, i);
        arrive_back(sim, j);
    } else if (s->delay_ns > 0 && s->there.head != NULL && s->there.head->at_ns <= sim->now_ns) {
        struct job *j = job_pop(&s->there);
        int refused = server_enter(s, j, sim->now_ns);
        if (refused != 0) {
            if (refused < 0)
                sim->error = -ENOMEM;
            send_back(sim, j, s, refused < 0 ? OUTCOME_SERVER_ABORT : (uint32_t)refused);
        }
        sim_touch(sim, i);
    } else {
        struct job *j = server_complete(s, sim->now_ns);
        if (s->delay_ns > 0)
            send_back(sim, j, s, OUTCOME_OK);
        sim_touch(sim, i);
        if (s->delay_ns == 0)
            close_flow(sim, j, OUTCOME_OK);
    }
}

static enum sla_class class_of(uint64_t seed, uint64_t number, double gold, double bronze)
{
    double u = (double)(rng_mix(rng_mix(seed ^ 0x736c61ULL) + number) >> 11) * 0x1p-53;
    return u < gold ? SLA_GOLD : u < gold + bronze ? SLA_BRONZE : SLA_SILVER;
}

void sim_classes(uint64_t seed, double gold, double bronze, uint64_t first, uint64_t n, uint8_t *classes)
{
    for (uint64_t i = 0; i < n; i++)
        classes[i] = (uint8_t)class_of(seed, first + i, gold, bronze);
}

static void arrive(struct sim *sim)
{
    struct arrival a;
    if (!source_take(&sim->source, &a))
        return;
    struct job *j = job_take(sim);
    if (j == NULL) {
        sim->error = -ENOMEM;
        return;
    }
    j->work_ns = a.work_ns;
    j->arrived_ns = sim->now_ns;
    j->key = a.key;
    j->number = sim->totals.arrivals++;
    j->balancer = a.balancer;
    j->sla = (uint32_t)class_of(sim->config.seed, j->number, sim->config.gold, sim->config.bronze);
    j->retries = 0;
    sim->totals.work_sum_ns += a.work_ns;
    if (j->number < sim->config.records_max) {
        sim->config.records[j->number] = (struct sim_record){ .arrival_ns = sim->now_ns, .work_ns = a.work_ns, .server = NO_SERVER,
                                                       .balancer = (uint16_t)a.balancer, .outcome = SIM_OPEN };
    }
    place_or_wait(sim, j, NO_SERVER);
}

void sim_lose_flows(struct sim *sim, uint32_t server)
{
    struct server *s = &sim->servers[server];
    struct job_list lost = server_crash(s, sim->now_ns);
    sim_touch(sim, server);
    while (lost.head != NULL)
        send_back(sim, job_pop(&lost), s, OUTCOME_SERVER_ABORT);
    sim_touch(sim, server);
}

static void refresh(struct sim *sim)
{
    for (uint32_t b = 0; b < sim->config.n_balancers; b++)
        balancer_refresh(sim->balancers[b], sim->now_ns + EPOCH_NS);
    if (sim->totals.waiting > 0)
        release_waiting(sim);
}

/* Scheduled events and the balancers' tick, all that are due. */
static void take_scheduled(struct sim *sim)
{
    bool published = false;
    while (sim->next_event < sim->n_events && sim->events[sim->next_event].at_ns <= sim->now_ns)
        published |= sim_apply(sim, sim->events[sim->next_event++]);
    if (sim->next_tick_ns <= sim->now_ns) {
        for (uint32_t b = 0; b < sim->config.n_balancers; b++)
            balancer_sample(sim->balancers[b], sim->now_ns + EPOCH_NS);
        sim->next_tick_ns += sim->config.sample_ns;
        published = true;
    }
    if (published)
        refresh(sim);
}

static bool is_finished(const struct sim *sim)
{
    return sim->source.next_ns == NEVER && sim->totals.in_flight == 0 && sim->totals.waiting == 0;
}

int sim_run(struct sim *sim, uint64_t until_ns)
{
    if (sim->error != 0)
        return sim->error;
    refresh(sim);
    while (sim->error == 0) {
        uint64_t pause_ns = sim->next_tick_ns;
        if (sim->next_event < sim->n_events && sim->events[sim->next_event].at_ns < pause_ns)
            pause_ns = sim->events[sim->next_event].at_ns;
        if (pause_ns > until_ns)
            pause_ns = until_ns;
        for (;;) {
            uint64_t server_ns = sim->tree[1], arrival_ns = sim->source.next_ns;
            uint64_t t = server_ns <= arrival_ns ? server_ns : arrival_ns;
            if (t > pause_ns || t == NEVER)
                break;
            sim->now_ns = t;
            if (server_ns <= arrival_ns)
                serve(sim);
            else
                arrive(sim);
        }
        if (sim->error != 0)
            return sim->error;
        if (is_finished(sim) && sim->next_event >= sim->n_events)
            return 1;
        bool quiet = sim->tree[1] == NEVER && sim->source.next_ns == NEVER && sim->next_event >= sim->n_events;
        if (until_ns == NEVER && quiet)
            return -EDEADLK; /* flows are left that nothing can move any more */
        sim->now_ns = pause_ns;
        take_scheduled(sim);
        if (pause_ns >= until_ns && sim->tree[1] > until_ns && sim->source.next_ns > until_ns)
            return is_finished(sim) && sim->next_event >= sim->n_events;
    }
    return sim->error;
}

void sim_totals(const struct sim *sim, struct sim_totals *out)
{
    *out = sim->totals;
    out->now_ns = sim->now_ns;
    out->recorded = sim->totals.arrivals < sim->config.records_max ? sim->totals.arrivals : sim->config.records_max;
    out->finished = is_finished(sim);
}

void sim_servers(const struct sim *sim, struct sim_server_state *out)
{
    for (uint32_t i = 0; i < sim->config.n_servers; i++) {
        /* On a copy: looking on must not change the rounding of what follows. */
        struct server s = sim->servers[i];
        server_advance(&s, sim->now_ns);
        out[i] = (struct sim_server_state){
            .in_server = s.in_server, .busy = s.in_server < s.workers ? s.in_server : s.workers, .alive = s.alive,
            .workers = s.workers, .speed = s.speed, .busy_ns = s.busy_ns, .capacity_ns = s.capacity_ns,
            .completed = s.completed, .overflowed = s.overflowed, .lost = s.lost, .refused = s.refused,
        };
    }
}
