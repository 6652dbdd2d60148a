/* One worker: its round of waiting, moving bytes, timers and housekeeping, and the memory it takes at start. */
#include "engine.h"
#include "proxy.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_NS 50000000ULL               /* durations of open flows are sampled so often */
#define TRIM_NS 1000000000ULL               /* unused buffers are given back so often … */
#define TRIM_BUFFERS 512                    /* … this many at a time … */
#define TRIM_KEEP 256                       /* … beyond this many */
#define ROUND_NS 100000000ULL               /* a round takes no longer, so that the watchdog works */
#define PAUSE_NS 2000000000ULL              /* a round this late means that the machine stood still */

#ifndef SMALL_BUFFERS                       /* tests make do with fewer */
#define SMALL_BUFFERS(limit) at_least(2 * (limit), 1024)
#define BULK_BUFFERS(limit) at_least(limit, 256)
#endif

uint64_t worker_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* The clock is read once a wait. Before anything is done: did the machine stand still? Timers do not count that. */
static void awake(struct loop *loop)
{
    struct worker_state *w = loop->owner;
    w->now_ns = worker_clock_ns();
    if (w->now_ns > w->wait_until_ns + PAUSE_NS)
        w->paused_ns += w->now_ns - w->wait_until_ns;
}

static void woken(struct loop *loop)
{
    ((struct worker_state *)loop->owner)->freed = true;
}

static void *map(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static uint32_t at_least(uint32_t n, uint32_t least)
{
    return n < least ? least : n;
}

int worker_make(struct worker_state *w, struct service *service, uint32_t index, uint32_t io, int listen_fd, const atomic_int *stop)
{
    const struct segment_header *header = service->segment;
    int error = -ENOMEM;
    w->service = service;
    w->index = index;
    w->stop = stop;
    w->now_ns = worker_clock_ns();
    w->server_slots = header->max_servers;
    timers_init(&w->timers);
    size_t balancer_bytes = balancer_size(service->segment);
    void *memory = map(balancer_bytes);
    if (!memory)
        return error;
    w->balancer = balancer_create(memory, service->segment, index, w->now_ns ^ (0x9e3779b97f4a7c15ULL * (index + 1)), w->now_ns);
    if (!w->balancer)
        return -EINVAL;
    balancer_refresh(w->balancer, w->now_ns);
    w->settings = balancer_settings(w->balancer);
    w->counters = balancer_worker(w->balancer);
    /* A session more than may be open: the last one is being closed while the next is accepted. */
    uint32_t limit = at_least((w->settings->maxconn + service->workers - 1) / service->workers, 16);
    w->session_limit = limit;
    w->session_slots = limit + 64;
    w->upstream_slots = 2 * w->session_slots + 512;     /* memory that is never used costs nothing */
    w->idle_up_max = w->session_slots + 256;
    w->sessions_memory = map((size_t)w->session_slots * sizeof(struct session));
    w->upstreams_memory = map((size_t)w->upstream_slots * sizeof(struct upstream));
    w->idle = map((size_t)w->server_slots * sizeof *w->idle);
    w->idle_n = map((size_t)w->server_slots * sizeof *w->idle_n);
    w->targets = map((size_t)w->session_slots * TARGET_BYTES);
    if (!w->sessions_memory || !w->upstreams_memory || !w->idle || !w->idle_n || !w->targets)
        return error;
    w->retry_tokens = 20;
    struct rlimit files;
    w->fd_limit = INT_MAX;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < INT_MAX)
        w->fd_limit = (int)files.rlim_cur - (files.rlim_cur > 2 * FD_RESERVE ? FD_RESERVE : (int)files.rlim_cur / 2);
    w->loop.owner = w;
    w->loop.accepted = session_accepted;
    w->loop.awake = awake;
    w->loop.woken = woken;
    uint32_t n_small = SMALL_BUFFERS(limit), n_bulk = BULK_BUFFERS(limit);
    error = loop_make(&w->loop, io, n_small > 65535 ? 65535 : n_small, n_bulk > 65535 ? 65535 : n_bulk, listen_fd,
                      service->wake_fds[index]);
    if (error)
        return error;
    __atomic_store_n(&w->counters->backend, w->loop.ops == &loop_epoll ? 2 : 1, __ATOMIC_RELAXED);
    return 0;
}

void worker_destroy(struct worker_state *w)
{
    if (w->loop.backend)
        loop_destroy(&w->loop);
    if (w->balancer)
        munmap(w->balancer, balancer_size(w->service->segment));
    if (w->sessions_memory)
        munmap(w->sessions_memory, (size_t)w->session_slots * sizeof(struct session));
    if (w->upstreams_memory)
        munmap(w->upstreams_memory, (size_t)w->upstream_slots * sizeof(struct upstream));
    if (w->idle)
        munmap(w->idle, (size_t)w->server_slots * sizeof *w->idle);
    if (w->idle_n)
        munmap(w->idle_n, (size_t)w->server_slots * sizeof *w->idle_n);
    if (w->targets)
        munmap(w->targets, (size_t)w->session_slots * TARGET_BYTES);
}

/* A slow reader that reads is not idle: has its backlog moved since the last look? */
static bool has_read(const struct conn *c, uint32_t *backlog_then)
{
    bool moved = c->out_n && c->out_bytes != *backlog_then;
    *backlog_then = c->out_bytes;
    return moved;
}

/* Which session or upstream a timer belongs to follows from its kind; two kinds serve both. */
static void expire(struct worker_state *w, struct timer *t)
{
    enum timer_kind kind = (enum timer_kind)t->kind;
    if (kind == TIMER_CONNECT || kind == TIMER_SERVER || kind == TIMER_IDLE_UP) {
        struct upstream *up = (struct upstream *)(void *)((char *)t - offsetof(struct upstream, timer));
        if (kind == TIMER_SERVER && has_read(&up->conn, &up->backlog_then))
            arm_timer(w, t, kind, w->settings->timeout_server_ns);
        else
            upstream_expired(up, kind);
        return;
    }
    struct session *s = (struct session *)(void *)((char *)t - offsetof(struct session, timer));
    if (kind == TIMER_KEEP_ALIVE && s->client.out_n) {      /* it has not even read the last answer: idle from then on */
        s->client.want_drained = true;
        arm_timer(w, t, TIMER_CLIENT, w->settings->timeout_client_ns);
    } else if (kind == TIMER_CLIENT && has_read(&s->client, &s->backlog_then)) {
        arm_timer(w, t, kind, w->settings->timeout_client_ns);
    } else {
        session_expired(s, kind);
    }
}

/* Settings were adopted: what waits by the old ones is looked at again. */
static void settings_changed(struct worker_state *w)
{
    const struct settings *s = w->settings = balancer_settings(w->balancer);
    const uint64_t durations[TIMER_KINDS] = {
        [TIMER_REQUEST] = s->timeout_http_request_ns, [TIMER_KEEP_ALIVE] = s->timeout_http_keep_alive_ns,
        [TIMER_CLIENT] = s->timeout_client_ns, [TIMER_CONNECT] = s->timeout_connect_ns, [TIMER_SERVER] = s->timeout_server_ns,
        [TIMER_QUEUE] = s->timeout_queue_ns, [TIMER_TUNNEL] = s->timeout_tunnel_ns};
    for (int kind = 0; kind < TIMER_KINDS; kind++)
        if (durations[kind])
            timers_shorten(&w->timers, (enum timer_kind)kind, timer_now(w) + durations[kind]);
    upstream_purge(w);
    session_limit_changed(w);
    w->freed = true;
}

/* A new directive, or the fallback rule instead of one: other bids, another reserve. */
static bool directive_changed(struct worker_state *w)
{
    const struct worker *c = w->counters;
    if (c->directive_sequence == w->directive_seen && c->fallback_active == w->fallback_seen)
        return false;
    w->directive_seen = c->directive_sequence;
    w->fallback_seen = c->fallback_active;
    return true;
}

/* Stop accepting; idle clients may send one more request for a moment; the rest finish until the deadline. */
static void drain(struct worker_state *w, bool now)
{
    if (!w->draining) {
        w->draining = true;
        w->drain_begun_ns = w->now_ns;
        loop_accept(&w->loop, false);
        if (w->loop.listen_fd >= 0)
            close(w->loop.listen_fd);
        w->loop.listen_fd = -1;
        upstream_purge(w);
    }
    uint64_t deadline = w->settings->drain_deadline_ns;
    bool all = now || (deadline && w->now_ns >= deadline);
    bool idle = w->now_ns - w->drain_begun_ns >= IDLE_GRACE_NS;
    for (struct session *s = w->sessions.first, *next; s; s = next) {
        next = s->next;
        if (all && s->state != SESSION_HEAD && s->state != SESSION_LINGER)
            session_abort(s, 'K', OUTCOME_CLIENT_ABORT);
        else if (all || (idle && s->state == SESSION_HEAD && s->in_n == 0 && s->client.out_n == 0))
            session_close(s, false);
    }
}

/* Has everything ended that was to be finished? */
static bool drained(const struct worker_state *w)
{
    return w->draining && w->sessions.n == 0;
}

int worker_run(struct worker_state *w)
{
    uint64_t sample_ns = 0, trim_ns = 0;
    w->now_ns = worker_clock_ns();
    loop_accept(&w->loop, true);
    for (;;) {
        uint64_t before = worker_clock_ns(), now = before - w->paused_ns, next = timers_next(&w->timers);
        uint64_t timeout = next == UINT64_MAX ? ROUND_NS : next > now ? next - now : 0;
        if (timeout > ROUND_NS)
            timeout = ROUND_NS;
        if (w->freed)
            timeout = 0;
        else if (w->sessions.n && timeout > SAMPLE_NS)
            timeout = SAMPLE_NS;
        w->wait_until_ns = before + timeout;
        int error = loop_wait(&w->loop, timeout);
        if (error)
            return error;
        w->now_ns = worker_clock_ns();
        if (balancer_refresh(w->balancer, w->now_ns))
            settings_changed(w);
        w->freed |= directive_changed(w);
        int stop = atomic_load_explicit(w->stop, memory_order_relaxed);
        if (stop || !w->settings->accepting)
            drain(w, stop > 1);
        else if (w->accept_again_ns && timer_now(w) >= w->accept_again_ns)
            session_accept_again(w);
        for (struct timer *t; (t = timers_due(&w->timers, timer_now(w)));)
            expire(w, t);
        if (w->freed)
            queue_wake(w);
        if (w->now_ns - sample_ns >= SAMPLE_NS) {
            sample_ns = w->now_ns;
            balancer_sample(w->balancer, w->now_ns);
            w->freed |= w->queue_n > 0;     /* flows are held for a time at most */
        }
        if (w->now_ns - trim_ns >= TRIM_NS) {
            trim_ns = w->now_ns;
            for (int i = 0; i < BUFFER_SIZES; i++)
                buffer_pool_trim(&w->loop.pools[i], TRIM_KEEP, TRIM_BUFFERS);
            __atomic_store_n(&w->counters->blocks_exhausted, w->loop.pool_exhausted, __ATOMIC_RELAXED);
        }
        if (drained(w)) {
            for (int i = 0; w->loop.n_conns && i < 100; i++)
                loop_wait(&w->loop, 10000000);      /* what was closed is released: other workers may go on for long */
            return 0;
        }
    }
}
