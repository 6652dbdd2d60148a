/* Connections to servers: made, pooled while idle, given up on; and what becomes of a request whose server failed it.
 *
 * A pooled connection is read all the time: a server that closes it, or sends what nobody asked for, takes it out of the
 * pool before the next request could meet it.
 */
#include "engine.h"
#include "proxy.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

static void idle_remove(struct upstream *up)
{
    struct worker_state *w = up->worker;
    *(up->prev ? &up->prev->next : &w->idle[up->server]) = up->next;
    if (up->next)
        up->next->prev = up->prev;
    up->next = up->prev = NULL;
    w->idle_n[up->server]--;
    COUNT(w, connections_idle_up, -1);
    timer_clear(&up->timer);
}

static void idle_add(struct upstream *up)
{
    struct worker_state *w = up->worker;
    up->prev = NULL;
    up->next = w->idle[up->server];
    if (up->next)
        up->next->prev = up;
    w->idle[up->server] = up;
    w->idle_n[up->server]++;
    COUNT(w, connections_idle_up, 1);
    arm_timer(w, &up->timer, TIMER_IDLE_UP, IDLE_UP_NS);
    conn_receive(&up->conn, false);
}

/* Has the server closed it, or sent something, that we have not heard of yet? The system is asked before a request that cannot
 * be replayed. */
static bool still_quiet(const struct upstream *up, bool replayable)
{
    char byte;
    if (!conn_is_quiet(&up->conn) || replayable)
        return conn_is_quiet(&up->conn);
    return recv(up->conn.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* Does so at once with epoll, soon with io_uring. */
static bool close_oldest_idle(struct worker_state *w)
{
    struct timer *oldest = w->timers.heads[TIMER_IDLE_UP].next;
    if (oldest == &w->timers.heads[TIMER_IDLE_UP])
        return false;
    struct upstream *up = (struct upstream *)(void *)((char *)oldest - offsetof(struct upstream, timer));
    idle_remove(up);
    upstream_close(up);
    return true;
}

bool upstream_take(struct session *s, uint32_t server)
{
    struct worker_state *w = s->worker;
    const struct server_entry *entry = balancer_server(w->balancer, server);
    struct upstream *up;
    /* A request that is sent once more had met a pooled connection's end: the others of the pool may be as old. */
    while (!s->request_begun && (up = w->idle[server]) != NULL) {
        idle_remove(up);
        if (up->server_id == entry->id && still_quiet(up, s->replayable)) {
            up->session = s;
            up->reused = true;
            s->up = up;
            __atomic_store_n(&balancer_stats(w->balancer, server)->connections_reused,
                             balancer_stats(w->balancer, server)->connections_reused + 1, __ATOMIC_RELAXED);
            request_send(s);
            return true;
        }
        upstream_close(up);
    }
    const struct sockaddr *address = (const struct sockaddr *)(const void *)entry->address;
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 && close_oldest_idle(w))     /* another server's pool holds what is missing here */
        fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    up = upstream_take_slot(w);
    if (!up) {
        close(fd);
        return false;
    }
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    memset(up, 0, sizeof *up);
    up->worker = w;
    up->session = s;
    up->server = server;
    up->server_id = entry->id;
    s->up = up;
    s->state = SESSION_CONNECTING;
    conn_open(&w->loop, &up->conn, fd, &upstream_events);
    arm_timer(w, &up->timer, TIMER_CONNECT, w->settings->timeout_connect_ns);
    conn_connect(&up->conn, address, (socklen_t)entry->address_bytes);
    return true;
}

void upstream_close(struct upstream *up)
{
    timer_clear(&up->timer);
    if (up->session)
        up->session->up = NULL;
    up->session = NULL;
    buffer_drop(up->worker->loop.pools, up->in);
    up->in = NULL;
    conn_close(&up->conn, false);
}

void upstream_release(struct upstream *up, bool reusable)
{
    struct worker_state *w = up->worker;
    if (up->session)
        up->session->up = NULL;
    up->session = NULL;
    const struct server_entry *entry = balancer_server(w->balancer, up->server);
    if (reusable && !up->conn.closed && up->conn.out_n == 0 && entry->id == up->server_id && entry->state == SERVER_READY
        && w->idle_n[up->server] < IDLE_UP_MAX && !w->draining && !up->in
        && !up->deaf && w->counters->connections_idle_up < w->idle_up_max)
        idle_add(up);
    else
        upstream_close(up);
}

void upstream_purge(struct worker_state *w)
{
    for (uint32_t i = 0; i < w->server_slots; i++) {
        const struct server_entry *entry = w->idle[i] ? balancer_server(w->balancer, i) : NULL;
        for (struct upstream *up = w->idle[i], *next; up; up = next) {
            next = up->next;
            if (w->draining || entry->id != up->server_id || entry->state != SERVER_READY || entry->health == HEALTH_DOWN) {
                idle_remove(up);
                upstream_close(up);
            }
        }
    }
}

/* The server failed this exchange. Another may be tried while it is certain, or harmless if not, that none has acted on it. */
void upstream_failed(struct session *s, enum outcome outcome, unsigned status, char termination)
{
    struct worker_state *w = s->worker;
    struct upstream *up = s->up;
    bool connecting = outcome == OUTCOME_CONNECT_FAILED;
    bool may = connecting || (outcome == OUTCOME_SERVER_ABORT && up && up->eof && !up->in && s->replayable && !s->head_sent);
    /* Once the request was sent, it is sent once more at most. */
    uint32_t allowed = s->request_begun ? 1 : w->settings->retries;
    bool intact = s->held_n || w->service->mode == MODE_TCP;     /* nothing of the request was given away */
    if (may && intact && w->settings->retries && s->attempts <= allowed) {
        /* The budget is for requests sent twice: they add load. One that no server saw is moved on, however many fail. */
        double cost = s->request_begun ? 1 : 0;
        if (w->retry_tokens >= cost) {
            w->retry_tokens -= cost;
            COUNT(w, retries, 1);
            memmove(s->failed + 1, s->failed, sizeof s->failed - sizeof s->failed[0]);
            s->failed[0] = (uint16_t)s->flow.server;
            s->n_failed = s->n_failed < 4 ? (uint8_t)(s->n_failed + 1) : 4;
            flow_retry(w->balancer, &s->flow, w->now_ns, outcome);
            w->freed = true;
            if (up)
                upstream_close(up);
            s->state = SESSION_CONNECTING;
            request_dispatch(s);
            return;
        }
        COUNT(w, retries_denied, 1);
    }
    session_answer(s, status, termination, outcome);
}

void upstream_expired(struct upstream *up, enum timer_kind kind)
{
    struct session *s = up->session;
    if (!s) {
        idle_remove(up);
        upstream_close(up);
    } else if (kind == TIMER_CONNECT) {
        upstream_failed(s, OUTCOME_CONNECT_FAILED, 503, 's');
    } else if (kind == TIMER_TUNNEL) {
        session_abort(s, 's', OUTCOME_OK);
    } else {
        upstream_failed(s, OUTCOME_SERVER_TIMEOUT, 504, 's');
    }
}

static void connected(struct conn *c, int error)
{
    struct upstream *up = upstream_of(c);
    struct session *s = up->session;
    struct worker_state *w = up->worker;
    timer_clear(&up->timer);
    if (!s) {
        upstream_close(up);
        return;
    }
    if (error) {
        upstream_failed(s, OUTCOME_CONNECT_FAILED, 503, 'S');
        return;
    }
    struct server_stats *stats = balancer_stats(w->balancer, up->server);
    __atomic_store_n(&stats->connections_opened, stats->connections_opened + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&stats->connect_sum_ns, stats->connect_sum_ns + (w->now_ns - s->dispatched_ns), __ATOMIC_RELAXED);
    request_send(s);
}

static void received(struct conn *c, struct buffer *buffer, char *at, int n)
{
    struct upstream *up = upstream_of(c);
    struct session *s = up->session;
    if (!s) {                               /* idle: closed by the server, or bytes that nobody asked for */
        if (up->timer.next && up->timer.kind == TIMER_IDLE_UP)
            idle_remove(up);
        upstream_close(up);
        return;
    }
    if (s->state == SESSION_TUNNEL) {
        tunnel_received(s, false, buffer, at, n);
    } else if (n > 0) {
        response_received(s, up, buffer, at, (uint32_t)n);
    } else if (n == 0) {
        response_eof(s, up);
    } else {
        up->eof = true;
        upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'S');
    }
}

static void sent(struct conn *c, int error)
{
    struct upstream *up = upstream_of(c);
    struct session *s = up->session;
    struct worker_state *w = up->worker;
    if (!s)
        return;
    if (s->state == SESSION_TUNNEL) {
        tunnel_sent(s, false, error);
    } else if (error) {
        /* The server reads no further. It may have answered before it closed: what it sent is still to be read; if there is
         * nothing, the receive that is under way says so. */
        up->deaf = true;
        timer_clear(&s->timer);
        arm_timer(w, &up->timer, TIMER_SERVER, w->settings->timeout_server_ns);
        conn_receive(c, false);
    } else if (!s->request.done) {          /* room for more of the body */
        session_watch(s);
        conn_receive(&s->client, true);
    }
}

static void released(struct conn *c)
{
    struct upstream *up = upstream_of(c);
    up->next = up->worker->upstreams_free;
    up->worker->upstreams_free = up;
}

const struct conn_events upstream_events = {.received = received, .sent = sent, .connected = connected, .released = released};
