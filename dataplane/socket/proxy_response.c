/* Answers on their way back: interim ones passed on, the head written anew, the body behind it, the end of the exchange. */
#include "proxy.h"

#include <string.h>

static void drop_partial(struct upstream *up)
{
    buffer_drop(up->worker->loop.pools, up->in);
    up->in = NULL;
    up->in_n = 0;
}

/* The answer is complete: the server is free, the client may go on. extra: bytes that the server sent beyond its end. */
static void response_done(struct session *s, struct upstream *up, uint32_t extra)
{
    struct worker_state *w = s->worker;
    COUNT(w, responses[s->status / 100 < 6 ? s->status / 100 : 0], 1);
    session_end_flow(s, s->request.done ? '-' : 'C', s->status >= 500 ? OUTCOME_SERVER_5XX : OUTCOME_OK);
    upstream_release(up, up->keep_alive && extra == 0 && s->request.done && !up->eof);
    request_drop_held(s);
    timer_clear(&s->timer);
    if (w->queue_n)
        queue_wake(w);                      /* the next request leaves before this answer: the server has nothing to do meanwhile */
    if (!s->keep_alive) {
        session_finish(s);
        return;
    }
    s->state = SESSION_HEAD;
    s->client.once = false;
    arm_timer(w, &s->timer, TIMER_KEEP_ALIVE, w->settings->timeout_http_keep_alive_ns);
    s->client.want_drained = s->in_n > 0;   /* the next pipelined request starts when this answer was sent */
    conn_flush(&s->client);
    if (s->in_n == 0)
        conn_receive(&s->client, false);
}

/* Send what was pushed, and read on when the client keeps up. */
static void response_continue(struct session *s, struct upstream *up)
{
    s->client.want_drained = backlogged(&s->client);
    session_watch(s);
    conn_flush(&s->client);
    if (!s->client.want_drained)
        conn_receive(&up->conn, s->response.from != FRAME_LENGTH || s->response.left > BUFFER_SMALL_READ);
}

static void forward_body(struct session *s, struct upstream *up, struct buffer *buffer, char *at, uint32_t n, char *floor,
                         const char *head, uint32_t head_n)
{
    int64_t used = body_forward(&s->response, &s->client, buffer, at, n, floor, head, head_n);
    if (used < 0) {
        conn_flush(&s->client);
        upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'S');
        return;
    }
    s->bytes_out += (uint64_t)used + head_n;
    COUNT(s->worker, bytes_out, (uint64_t)used + head_n);
    if (s->response.done)
        response_done(s, up, n - (uint32_t)used);
    else
        response_continue(s, up);
}

/* A 1xx answer: passed on to clients that know them; the real one follows. False: the session is gone or tunnelling. */
static bool interim(struct session *s)
{
    struct worker_state *w = s->worker;
    const struct http_head *head = &w->head;
    if (head->status == 101) {
        struct span key = {s->websocket_key, s->key_n};
        if (!s->upgrade || !head->upgrade_websocket || !http_websocket_agrees(key, head->websocket_key)) {
            upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'S');
            return false;
        }
    }
    if (s->minor == 0)
        return true;
    s->replayable = false;                  /* the client has heard of this one */
    struct buffer *buffer = buffer_take(&w->loop.pools[BUFFER_SMALL]);
    size_t n = buffer ? http_write_response(head, true, s->minor, FRAME_NONE, buffer->data, BUFFER_SMALL_BYTES) : 0;
    if (n)
        conn_push(&s->client, buffer, buffer->data, (uint32_t)n);
    buffer_drop(w->loop.pools, buffer);
    if (head->status != 101)
        return true;
    if (!n) {
        session_abort(s, 'R', OUTCOME_SERVER_ABORT);
        return false;
    }
    s->status = 101;
    s->head_sent = true;
    COUNT(w, responses[1], 1);
    return true;
}

/* How the body goes to this client. */
static enum framing framing_to_client(const struct session *s, const struct http_head *head)
{
    if (head->framing == FRAME_NONE || head->framing == FRAME_LENGTH)
        return head->framing;
    return s->minor == 0 ? FRAME_CLOSE : FRAME_CHUNKED;
}

static void keep_partial(struct upstream *up, struct buffer *buffer, char *at, uint32_t n)
{
    if (n)
        buffer_ref(buffer);
    up->in = n ? buffer : NULL;
    up->in_at = at;
    up->in_n = n;
}

/* Bytes of an answer whose head is not whole yet. */
static void head_received(struct session *s, struct upstream *up, struct buffer *buffer, char *at, uint32_t n)
{
    struct worker_state *w = s->worker;
    for (;;) {
        if (backlogged(&s->client)) {       /* more interim answers than the client takes: the rest waits, and the server */
            keep_partial(up, buffer, at, n);
            s->client.want_drained = true;
            session_watch(s);
            conn_flush(&s->client);
            return;
        }
        int head_n = n ? http_parse_response(at, n, s->method, &w->head) : 0;
        if (head_n < 0 || (head_n == 0 && n >= HTTP_HEAD_MAX)) {
            upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'P');
            return;
        }
        if (head_n == 0) {
            keep_partial(up, buffer, at, n);
            conn_flush(&s->client);
            conn_receive(&up->conn, false);
            return;
        }
        at += head_n;
        n -= (uint32_t)head_n;
        if (w->head.status >= 200)
            break;
        if (!interim(s))
            return;
        if (w->head.status == 101) {
            if (n)
                conn_push(&s->client, buffer, at, n);
            tunnel_start(s);
            return;
        }
    }
    s->first_byte_ns = w->now_ns;
    s->status = w->head.status;
    up->keep_alive = w->head.keep_alive && w->head.framing != FRAME_CLOSE;
    s->replayable = false;
    enum framing to = framing_to_client(s, &w->head);
    if (!s->request.done || to == FRAME_CLOSE || w->draining || s->client_eof)
        s->keep_alive = false;              /* an early answer: what is left of the request cannot be told from a next one */
    size_t out = http_write_response(&w->head, s->keep_alive, s->minor, to, w->scratch, sizeof w->scratch);
    if (out == 0) {
        upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'P');
        return;
    }
    s->head_sent = true;
    body_drop(&s->response, w->loop.pools);
    body_begin(&s->response, w->head.framing, to, w->head.length);
    /* The old head was read: its place takes the new one. */
    forward_body(s, up, buffer, at, n, buffer->data, w->scratch, (uint32_t)out);
}

void response_received(struct session *s, struct upstream *up, struct buffer *buffer, char *at, uint32_t n)
{
    struct worker_state *w = s->worker;
    w->now_ns = worker_clock_ns();
    if (s->head_sent) {
        forward_body(s, up, buffer, at, n, buffer->data, NULL, 0);
        return;
    }
    if (!up->in) {
        head_received(s, up, buffer, at, n);
        return;
    }
    /* The head came in pieces: join them in a buffer that holds both. */
    struct buffer *both = up->in;
    char *end = both->data + buffer_bytes(both) - 64;
    if (both->refs > 1 || up->in_at + up->in_n + n > end) {
        both = buffer_take(&w->loop.pools[BUFFER_BULK]);
        if (!both || BUFFER_HEADROOM + up->in_n + n > BUFFER_BULK_BYTES - 64) {
            buffer_drop(w->loop.pools, both);
            upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'R');
            return;
        }
        memcpy(both->data + BUFFER_HEADROOM, up->in_at, up->in_n);
        up->in_at = both->data + BUFFER_HEADROOM;
    } else {
        buffer_ref(both);
    }
    memcpy(up->in_at + up->in_n, at, n);
    char *from = up->in_at;
    uint32_t have = up->in_n + n;
    drop_partial(up);
    head_received(s, up, both, from, have);
    buffer_drop(w->loop.pools, both);
}

void response_resume(struct session *s, struct upstream *up)
{
    session_watch(s);
    if (s->head_sent) {
        conn_receive(&up->conn, true);
        return;
    }
    struct buffer *buffer = up->in;
    uint32_t n = up->in_n;
    up->in = NULL;
    up->in_n = 0;
    head_received(s, up, buffer, up->in_at, n);
    buffer_drop(s->worker->loop.pools, buffer);
}

/* The server closed its sending side. */
void response_eof(struct session *s, struct upstream *up)
{
    struct worker_state *w = s->worker;
    up->eof = true;
    if (!s->head_sent) {
        upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'S');
    } else if (s->response.from == FRAME_CLOSE) {
        s->response.done = true;
        if (s->response.to == FRAME_CHUNKED)
            conn_push(&s->client, NULL, (char *)(uintptr_t)"0\r\n\r\n", 5);
        w->now_ns = worker_clock_ns();
        response_done(s, up, 0);
    } else {
        upstream_failed(s, OUTCOME_SERVER_ABORT, 502, 'S');
    }
}
