/* Client connections: read, answered where no server can, and closed so that the client sees its last answer. */
#include "engine.h"
#include "proxy.h"

#include <string.h>
#include <sys/ioctl.h>

static void list_remove(struct worker_state *w, struct session *s)
{
    *(s->prev ? &s->prev->next : &w->sessions.first) = s->next;
    *(s->next ? &s->next->prev : &w->sessions.last) = s->prev;
    w->sessions.n--;
}

void session_drop_input(struct session *s)
{
    buffer_drop(s->worker->loop.pools, s->in);
    s->in = NULL;
    s->in_n = 0;
}

/* Keep bytes for later: in place when there are none kept yet, behind them when they fit, in a large buffer when not. */
bool session_keep_input(struct session *s, struct buffer *buffer, char *at, uint32_t n)
{
    struct worker_state *w = s->worker;
    if (s->in && s->in_n == 0)
        session_drop_input(s);
    if (!s->in) {
        buffer_ref(buffer);
        s->in = buffer;
        s->in_at = at;
        s->in_n = n;
        s->in_floor = buffer->data;
        return true;
    }
    const uint32_t tail = 64;               /* a chunk's end is written behind the data */
    char *end = s->in->data + buffer_bytes(s->in) - tail;
    if (s->in->refs > 1 || s->in_at + s->in_n + n > end) {
        struct buffer *larger = buffer_take(&w->loop.pools[BUFFER_BULK]);
        if (!larger || BUFFER_HEADROOM + s->in_n + n > BUFFER_BULK_BYTES - tail) {
            buffer_drop(w->loop.pools, larger);
            return false;
        }
        memcpy(larger->data + BUFFER_HEADROOM, s->in_at, s->in_n);
        buffer_drop(w->loop.pools, s->in);
        s->in = larger;
        s->in_at = larger->data + BUFFER_HEADROOM;
        s->in_floor = larger->data;
    }
    memcpy(s->in_at + s->in_n, at, n);
    s->in_n += n;
    return true;
}

/* The flow leaves the balance, and its record is written. Called once an exchange, whatever became of it. */
void session_end_flow(struct session *s, char termination, enum outcome outcome)
{
    struct worker_state *w = s->worker;
    if (s->opened_ns == 0)
        return;
    struct flow_record r = {
        .opened_ns = s->opened_ns, .dispatched_ns = s->dispatched_ns, .connected_ns = s->connected_ns,
        .first_byte_ns = s->first_byte_ns, .closed_ns = w->now_ns, .server_id = s->flow.server == NO_SERVER ? 0 : s->flow.server_id,
        .server = s->flow.server, .found = s->flow.found, .bytes_in = s->bytes_in, .bytes_out = s->bytes_out, .bid = s->bid,
        .price = s->price, .outcome = outcome, .status = s->status, .retries = s->attempts ? s->attempts - 1u : 0u, .rule = s->rule,
        .client_port = s->client_port, .method = s->method, .termination = (uint8_t)termination,
        .directive_sequence = w->counters->directive_sequence, .load = s->load, .waiting = s->waiting, .route = s->route, .sla = s->sla,
        .handoff = s->handoff};
    memcpy(r.client, s->client_address, 16);
    if (s->flow.server != NO_SERVER) {
        flow_close(w->balancer, &s->flow, w->now_ns, s->bytes_in, s->bytes_out, outcome);
        w->freed = true;
    }
    balancer_record(w->balancer, &r, s->target_n ? s->target : NULL, s->target_n);
    s->opened_ns = 0;
    s->target_n = 0;
}

static void begin_linger(struct session *s)
{
    struct worker_state *w = s->worker;
    s->state = SESSION_LINGER;
    conn_shutdown(&s->client);
    arm_timer(w, &s->timer, TIMER_LINGER, LINGER_NS);
    session_drop_input(s);
    conn_receive(&s->client, false);
}

static bool has_unread(const struct conn *c)
{
    int n = 0;
    return !conn_is_quiet(c) || (!c->receiving && ioctl(c->fd, FIONREAD, &n) == 0 && n > 0);
}

void session_finish(struct session *s)
{
    struct worker_state *w = s->worker;
    s->state = SESSION_FLUSH;
    if (s->client.out_n) {
        s->client.want_drained = true;
        arm_timer(w, &s->timer, TIMER_CLIENT, w->settings->timeout_client_ns);
        conn_flush(&s->client);
        if (s->client.out_n || s->client.failed)
            return;
        s->client.want_drained = false;
    }
    /* Closing with unread bytes would send a reset, and a reset can overtake the answer. */
    if (!s->client_eof && (s->in_n || !s->request.done || has_unread(&s->client)))
        begin_linger(s);
    else
        session_close(s, false);
}

/* Answer here. The exchange ends; the connection stays open only when the request was read whole. */
void session_answer(struct session *s, unsigned status, char termination, enum outcome outcome)
{
    struct worker_state *w = s->worker;
    if (s->head_sent || w->service->mode == MODE_TCP) {
        session_abort(s, termination, outcome);
        return;
    }
    if (s->state == SESSION_QUEUED)
        queue_remove(s);
    s->status = (uint16_t)status;
    COUNT(w, responses[status / 100 < 6 ? status / 100 : 0], 1);
    bool server_side = status == 502 || status == 503 || status == 504;
    if (server_side)
        COUNT(w, answered_here, 1);
    else if (status >= 400)
        COUNT(w, requests_bad, 1);
    bool keep = server_side && s->keep_alive && s->request.done && !s->client_eof && !w->draining;
    session_end_flow(s, termination, outcome);
    if (s->up)
        upstream_release(s->up, false);
    request_drop_held(s);
    timer_clear(&s->timer);
    struct buffer *buffer = buffer_take(&w->loop.pools[BUFFER_SMALL]);
    size_t n = buffer && conn_has_room(&s->client)
        ? http_write_error(status, keep, s->method == HTTP_HEAD, status == 503 ? 1 : 0, buffer->data, BUFFER_SMALL_BYTES) : 0;
    if (!n) {
        buffer_drop(w->loop.pools, buffer);
        session_close(s, true);
        return;
    }
    conn_push(&s->client, buffer, buffer->data, (uint32_t)n);
    buffer_drop(w->loop.pools, buffer);
    if (!keep) {
        s->keep_alive = false;
        if (!server_side)
            s->request.done = false;        /* what follows a refused head is not read as requests */
        session_finish(s);
        return;
    }
    s->state = SESSION_HEAD;
    s->client.once = false;
    s->client.want_drained = s->in_n > 0;   /* the next request starts when that was sent */
    arm_timer(w, &s->timer, TIMER_KEEP_ALIVE, w->settings->timeout_http_keep_alive_ns);
    conn_flush(&s->client);
    if (s->in_n == 0)
        conn_receive(&s->client, false);
}

/* The answer cannot be completed: the client must not take what it has for the whole. */
void session_abort(struct session *s, char termination, enum outcome outcome)
{
    session_end_flow(s, termination, outcome);
    session_close(s, s->response.to == FRAME_CLOSE || s->state == SESSION_TUNNEL);
}

void session_close(struct session *s, bool reset)
{
    struct worker_state *w = s->worker;
    if (s->client.closed)
        return;
    if (s->state == SESSION_QUEUED)
        queue_remove(s);
    session_end_flow(s, 'C', OUTCOME_CLIENT_ABORT);
    if (s->up)
        upstream_release(s->up, false);
    timer_clear(&s->timer);
    request_drop_held(s);
    session_drop_input(s);
    body_drop(&s->request, w->loop.pools);
    body_drop(&s->response, w->loop.pools);
    list_remove(w, s);
    COUNT(w, connections, -1);
    s->state = SESSION_FREE;
    conn_close(&s->client, reset);
}

static void released(struct conn *c)
{
    struct session *s = session_of(c);
    struct worker_state *w = s->worker;
    s->next = w->sessions_free;
    w->sessions_free = s;
    session_accept_again(w);
}

/* Start what has arrived, one request after the other, as long as the last one's answer left room. */
void session_pump(struct session *s)
{
    struct worker_state *w = s->worker;
    while (s->state == SESSION_HEAD && s->in_n) {
        if (backlogged(&s->client)) {       /* a pipelining client that does not read */
            s->client.want_drained = true;
            arm_timer(w, &s->timer, TIMER_CLIENT, w->settings->timeout_client_ns);
            return;
        }
        int n = http_parse_request(s->in_at, s->in_n, &w->head);
        if (n == 0)
            break;
        s->request.done = false;
        s->method = n < 0 ? HTTP_OTHER : w->head.method;
        s->keep_alive = s->head_sent = false;
        s->opened_ns = w->now_ns;
        s->dispatched_ns = s->connected_ns = s->first_byte_ns = 0;
        s->bytes_in = s->bytes_out = 0;
        s->bid = s->price = s->load = 0;
        s->waiting = 0;
        s->sla = (uint8_t)w->settings->sla_default;
        s->route = s->handoff = 0;
        s->attempts = 0;
        s->status = 0;
        COUNT(w, requests_total, 1);
        if (n == -200) {                    /* OPTIONS for ourselves; where its body would end was not looked at */
            session_answer(s, 200, 'L', OUTCOME_OK);
            return;
        }
        if (n < 0) {
            session_answer(s, (unsigned)-n, 'P', OUTCOME_CLIENT_ABORT);
            return;
        }
        if (!request_start(s, (uint32_t)n))
            return;
    }
    if (s->state != SESSION_HEAD)
        return;
    if (s->in_n >= HTTP_HEAD_MAX + 4) {
        s->opened_ns = w->now_ns;
        session_answer(s, 431, 'P', OUTCOME_CLIENT_ABORT);
        return;
    }
    if (s->client_eof) {                    /* nothing more will come: an unfinished request has no answer */
        session_finish(s);
        return;
    }
    if (s->in_n && (s->timer.next == NULL || s->timer.kind != TIMER_REQUEST))
        arm_timer(w, &s->timer, TIMER_REQUEST, w->settings->timeout_http_request_ns);
    if (s->in_n == 0)
        session_drop_input(s);
    conn_receive(&s->client, false);
}

static void client_eof(struct session *s)
{
    s->client_eof = true;
    if (s->state == SESSION_HEAD) {
        if (s->client.out_n)
            session_finish(s);
        else
            session_close(s, false);
    } else if (s->state == SESSION_TUNNEL) {
        tunnel_received(s, true, NULL, NULL, 0);
    } else if (s->state == SESSION_LINGER) {
        session_close(s, false);
    } else if (s->state != SESSION_FLUSH) {
        if (!s->request.done) {             /* the request will never be whole */
            session_end_flow(s, 'C', OUTCOME_CLIENT_ABORT);
            session_close(s, false);
            return;
        }
        s->keep_alive = false;
        if (s->state == SESSION_EXCHANGE)
            session_watch(s);
    }
}

static void received(struct conn *c, struct buffer *buffer, char *at, int n)
{
    struct session *s = session_of(c);
    struct worker_state *w = s->worker;
    if (n == 0) {
        client_eof(s);
        return;
    }
    if (n < 0) {                            /* reset */
        session_close(s, false);
        return;
    }
    COUNT(w, bytes_in, n);
    switch (s->state) {
    case SESSION_HEAD: {
        w->now_ns = worker_clock_ns();
        bool first = s->in_n == 0;
        if (!session_keep_input(s, buffer, at, (uint32_t)n)) {
            s->opened_ns = w->now_ns;
            s->keep_alive = false;          /* bytes were lost */
            session_answer(s, 503, 'R', OUTCOME_CLIENT_ABORT);
        } else if (first || s->in_n >= HTTP_HEAD_MAX || memchr(at, '\n', (size_t)n)) {
            session_pump(s);
        } else {
            conn_receive(c, false);
        }
        break;
    }
    case SESSION_TUNNEL:
        tunnel_received(s, true, buffer, at, n);
        break;
    case SESSION_LINGER:
        conn_receive(c, false);
        break;
    case SESSION_FLUSH:
        s->in_n = 0;                        /* thrown away: the connection is about to close */
        s->request.done = false;
        break;
    default:
        if (!s->request.done && s->state == SESSION_EXCHANGE)
            request_body(s, buffer, at, (uint32_t)n);
        else if (!session_keep_input(s, buffer, at, (uint32_t)n))
            session_close(s, true);
    }
}

static void sent(struct conn *c, int error)
{
    struct session *s = session_of(c);
    struct worker_state *w = s->worker;
    if (s->state == SESSION_TUNNEL) {
        tunnel_sent(s, true, error);
        return;
    }
    if (error) {                            /* the client is gone */
        session_close(s, false);
        return;
    }
    if (s->state == SESSION_FLUSH) {
        session_finish(s);
    } else if (s->state == SESSION_HEAD) {
        arm_timer(w, &s->timer, TIMER_KEEP_ALIVE, w->settings->timeout_http_keep_alive_ns);
        session_pump(s);
    } else if (s->state == SESSION_EXCHANGE && !s->up->eof) {
        response_resume(s, s->up);          /* the server may go on */
    }
}

/* A receive would still say end of file: only the socket's error tells that a reset came behind it. */
static bool was_reset(const struct conn *c)
{
    int error = 0;
    socklen_t bytes = sizeof error;
    return getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0 || error != 0;
}

void session_watch(struct session *s)
{
    struct worker_state *w = s->worker;
    struct upstream *up = s->up;
    bool client = s->client.want_drained || (!s->request.done && !up->conn.want_drained);
    timer_clear(client ? &up->timer : &s->timer);
    if (client)
        arm_timer(w, &s->timer, TIMER_CLIENT, w->settings->timeout_client_ns);
    else
        arm_timer(w, &up->timer, TIMER_SERVER, w->settings->timeout_server_ns);
    if (!client && s->client_eof && !s->head_sent)      /* half-closed, or gone? Only the answer, or a probe, will tell */
        arm_timer(w, &s->timer, TIMER_ABORT_PROBE, ABORT_PROBE_NS);
    else if (!client && !s->client_eof && !s->client.receiving && s->in_n == 0)
        arm_timer(w, &s->timer, TIMER_LOOK, LOOK_NS);
}

void session_expired(struct session *s, enum timer_kind kind)
{
    struct worker_state *w = s->worker;
    switch (kind) {
    case TIMER_REQUEST:
        if (s->in_n) {
            s->opened_ns = w->now_ns;
            session_answer(s, 408, 'c', OUTCOME_CLIENT_TIMEOUT);
        } else {
            session_close(s, false);
        }
        break;
    case TIMER_QUEUE:                       /* the reserve held it, and the time was over before the next look? Then there is room */
        if (request_try(s, 0, true) == VERDICT_GONE)
            break;
        COUNT(w, queue_timeouts, 1);
        session_answer(s, 503, 'Q', OUTCOME_CLIENT_TIMEOUT);
        break;
    case TIMER_CLIENT:
        if (s->state == SESSION_EXCHANGE && !s->head_sent && !s->request.done)
            session_answer(s, 408, 'c', OUTCOME_CLIENT_TIMEOUT);
        else
            session_abort(s, 'c', OUTCOME_CLIENT_TIMEOUT);
        break;
    case TIMER_LOOK:
        conn_receive(&s->client, false);
        break;
    case TIMER_ABORT_PROBE:
        if (s->state != SESSION_EXCHANGE || s->head_sent)
            break;
        if (was_reset(&s->client)) {
            session_close(s, false);
            break;
        }
        if (!s->probed && s->minor > 0) {   /* an interim answer; a client that is gone answers it with a reset */
            static char probe[] = "HTTP/1.1 100 Continue\r\n\r\n";
            s->probed = true;
            conn_push(&s->client, NULL, probe, sizeof probe - 1);
            conn_flush(&s->client);
        }
        arm_timer(w, &s->timer, TIMER_ABORT_PROBE, ABORT_PROBE_NS);
        break;
    default:
        session_close(s, false);
    }
}

static void connected(struct conn *c, int error)
{
    (void)c, (void)error;                   /* accepted connections are connected */
}

const struct conn_events session_events = {.received = received, .sent = sent, .connected = connected, .released = released};
