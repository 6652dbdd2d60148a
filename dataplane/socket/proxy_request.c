/* Requests on their way to a server: the head written anew, the auction, the body behind it. */
#include "engine.h"
#include "proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

void request_drop_held(struct session *s)
{
    buffer_drop(s->worker->loop.pools, s->held);
    s->held = NULL;
    s->held_n = 0;
}

/* Hold the head as it goes out: in front of the body, where the old head was, when it fits there. */
static bool hold_head(struct session *s, const char *head, uint32_t n)
{
    struct worker_state *w = s->worker;
    uint32_t gap = s->request.from == FRAME_CHUNKED ? 8 : 0;    /* for the first chunk's size line */
    request_drop_held(s);
    if (s->in_at - s->in_floor >= (ptrdiff_t)(n + gap)) {
        s->held = s->in;
        buffer_ref(s->held);
        s->held_at = s->in_at - gap - n;
        s->in_floor = s->in_at - gap;
    } else {
        s->held = buffer_take(&w->loop.pools[BUFFER_SMALL]);
        if (!s->held)
            return false;
        s->held_at = s->held->data;
        s->in_floor = s->in_at;
    }
    memcpy(s->held_at, head, n);
    s->held_n = n;
    return true;
}

static uint64_t key_hash(const struct session *s)
{
    uint64_t a, b;
    memcpy(&a, s->client_address, 8);
    memcpy(&b, s->client_address + 8, 8);
    uint64_t h = (a ^ (b * 0x9e3779b97f4a7c15ULL)) + s->client_port;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93ULL;
    return h ^ (h >> 32);
}

/* The address that the client reached us at, as a Host, for the rare request that has none. room: HOST_TEXT. */
#define HOST_TEXT (INET6_ADDRSTRLEN + 10)
static struct span local_host(const struct session *s, char *out)
{
    struct sockaddr_storage local = {0};
    socklen_t bytes = sizeof local;
    char text[INET6_ADDRSTRLEN] = "";
    int n = 0;
    if (getsockname(s->client.fd, (struct sockaddr *)&local, &bytes) == 0) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&local;
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&local;
        if (local.ss_family == AF_INET && inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text))
            n = snprintf(out, HOST_TEXT, "%s:%u", text, ntohs(v4->sin_port));
        else if (local.ss_family == AF_INET6 && inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text))
            n = snprintf(out, HOST_TEXT, "[%s]:%u", text, ntohs(v6->sin6_port));
    }
    if (n == 0)                             /* a unix socket */
        n = snprintf(out, HOST_TEXT, "localhost");
    return (struct span){out, (uint32_t)n};
}

/* The request was read whole: read on for the next one, or for the client's disappearance. One that will send nothing more
 * is not read while its answer may come soon (session_watch() does after a while): most are gone before. A body is
 * read once a server takes it. */
static void read_on(struct session *s)
{
    if (s->request.done && s->in_n == 0 && !s->client_eof && (s->keep_alive || s->state == SESSION_QUEUED))
        conn_receive(&s->client, false);
}

/* w->head is parsed, head_bytes of the input are it. */
bool request_start(struct session *s, uint32_t head_bytes)
{
    struct worker_state *w = s->worker;
    const struct http_head *head = &w->head;
    s->minor = head->minor;
    s->keep_alive = head->keep_alive && !w->draining;
    s->upgrade = head->upgrade_websocket;
    s->probed = s->request_begun = false;
    s->replayable = (head->method == HTTP_GET || head->method == HTTP_HEAD || head->method == HTTP_OPTIONS) && head->framing == FRAME_NONE;
    s->n_failed = 0;
    s->bytes_in = head_bytes;
    if (s->upgrade) {
        s->key_n = (uint8_t)(head->websocket_key.n < sizeof s->websocket_key ? head->websocket_key.n : sizeof s->websocket_key);
        memcpy(s->websocket_key, head->websocket_key.at, s->key_n);
    }
    if (w->settings->log_targets && w->targets) {
        s->target = w->targets + (size_t)(s - w->sessions_memory) * TARGET_BYTES;
        s->target_n = head->target.n < TARGET_BYTES ? head->target.n : TARGET_BYTES;
        memcpy(s->target, head->target.at, s->target_n);
    }
    class_of_request(s, head);              /* here: the new head is about to be written over the old one */
    body_drop(&s->request, w->loop.pools);
    body_begin(&s->request, head->framing, head->framing, head->length);
    struct forward forward = {.client = {s->client_text, s->client_text_n}, .append = s->trusted};
    char host[HOST_TEXT];
    if (head->host.n == 0)
        forward.default_host = local_host(s, host);
    size_t n = http_write_request(head, &forward, w->scratch, sizeof w->scratch);
    if (n == 0) {
        session_answer(s, 431, 'P', OUTCOME_CLIENT_ABORT);
        return false;
    }
    s->in_at += head_bytes;
    s->in_n -= head_bytes;
    if (!hold_head(s, w->scratch, (uint32_t)n)) {
        session_answer(s, 503, 'R', OUTCOME_CLIENT_ABORT);
        return false;
    }
    timer_clear(&s->timer);
    w->retry_tokens += w->settings->retry_budget_percent / 100.0;
    if (w->retry_tokens > 100)
        w->retry_tokens = 100;
    request_dispatch(s);
    if (s->state == SESSION_EXCHANGE || s->state == SESSION_CONNECTING || s->state == SESSION_QUEUED)
        read_on(s);
    return s->state == SESSION_HEAD;
}

enum verdict request_try(struct session *s, uint32_t before, bool unheld)
{
    struct worker_state *w = s->worker;
    bool first_try = s->attempts == 0;
    struct flow_key key = {.hash = key_hash(s), .load = -1.0f, .route = s->route, .sla = s->sla, .waiting = before,
                           .unheld = unheld || !first_try || w->service->mode == MODE_TCP,
                           .avoid = s->n_failed ? s->failed[0] : NO_SERVER};
    for (uint32_t i = 1; i < s->n_failed; i++)
        key.failed[key.n_failed++] = s->failed[i];
    for (uint32_t c = 0; c < SLA_CLASSES && before && s->state != SESSION_QUEUED; c++)
        key.queued[c] = atomic_load_explicit(&w->service->waiting[c], memory_order_relaxed);
    struct award award = balancer_dispatch(w->balancer, &key, w->now_ns);
    if (award.server == NO_SERVER) {
        w->held_bid = award.bid;
        w->idle_bid = award.idle_bid;
        w->yields = award.held == HELD_YIELDS;
        if (award.full)
            return award.held == HELD_NOT ? VERDICT_FULL : VERDICT_HELD;
        session_answer(s, 503, 'S', OUTCOME_CONNECT_FAILED);
        return VERDICT_GONE;
    }
    bool waited = s->state == SESSION_QUEUED;
    if (waited) {
        uint64_t wait_ns = w->now_ns - s->queued_ns;
        queue_remove(s);
        COUNT(w, queue_wait_sum_ns, wait_ns);
        COUNT(w, wait_class_sum_ns[s->sla], wait_ns);
        atomic_fetch_add(&w->service->turns, 1);
    }
    if (first_try) {                        /* one that waited before a retry as well is counted once */
        COUNT(w, flows_class[s->sla], 1);
        COUNT(w, waited_class[s->sla], waited);
    }
    s->bid = award.bid;
    s->price = award.price;
    s->load = award.load;
    s->rule = award.rule;
    s->handoff = award.handoff != 0;
    s->waiting = before;
    s->attempts++;
    s->dispatched_ns = w->now_ns;
    flow_open(w->balancer, &s->flow, award.server, award.load, s->opened_ns, w->now_ns);
    if (!upstream_take(s, award.server))
        session_answer(s, 503, 'R', OUTCOME_CONNECT_FAILED);
    return VERDICT_GONE;
}

void request_dispatch(struct session *s)
{
    struct worker_state *w = s->worker;
    uint32_t before = 0;
    if (s->attempts == 0 && atomic_load_explicit(&w->service->waiters, memory_order_relaxed)) {
        bool look_due;
        before = queue_before(w, s->sla, &look_due);
        if (before && look_due) {           /* what has come free is theirs first */
            queue_add(s, VERDICT_GONE);
            return;
        }
    }
    enum verdict verdict = request_try(s, before, false);
    if (verdict != VERDICT_GONE)
        queue_add(s, verdict);
}

/* The server's connection stands: send what there is of the request. */
void request_send(struct session *s)
{
    struct worker_state *w = s->worker;
    struct upstream *up = s->up;
    s->state = SESSION_EXCHANGE;
    s->connected_ns = w->now_ns;
    if (w->service->mode == MODE_TCP) {
        tunnel_connected(s);
        return;
    }
    s->request_begun = true;
    conn_push(&up->conn, s->held, s->held_at, s->held_n);
    if (!s->replayable)
        request_drop_held(s);
    if (s->in_n && !s->request.done) {
        int64_t used = body_forward(&s->request, &up->conn, s->in, s->in_at, s->in_n, s->in_floor, NULL, 0);
        if (used < 0) {
            session_answer(s, 400, 'P', OUTCOME_CLIENT_ABORT);
            return;
        }
        s->in_at += used;
        s->in_n -= (uint32_t)used;
        s->bytes_in += (uint64_t)used;
        s->in_floor = s->in_at;             /* what was pushed must stay until it is sent */
    }
    if (s->in_n == 0)
        session_drop_input(s);
    conn_flush(&up->conn);
    conn_receive(&up->conn, false);
    session_watch(s);
    if (!s->request.done)
        conn_receive(&s->client, true);
    else
        read_on(s);
}

/* More of the body arrived. */
void request_body(struct session *s, struct buffer *buffer, char *at, uint32_t n)
{
    struct upstream *up = s->up;
    int64_t used = body_forward(&s->request, &up->conn, buffer, at, n, buffer->data, NULL, 0);
    if (used < 0) {
        session_answer(s, 400, 'P', OUTCOME_CLIENT_ABORT);
        return;
    }
    s->bytes_in += (uint64_t)used;
    if (used < n && !session_keep_input(s, buffer, at + used, n - (uint32_t)used)) {
        session_close(s, true);
        return;
    }
    if (s->in)
        s->in_floor = s->in_at;
    up->conn.want_drained = !s->request.done && backlogged(&up->conn);      /* the server is slower: wait for it */
    session_watch(s);
    conn_flush(&up->conn);
    if (s->request.done ? s->in_n == 0 : !up->conn.want_drained)
        conn_receive(&s->client, !s->request.done);
}
