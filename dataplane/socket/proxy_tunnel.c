/* Bytes both ways, unread: tcp mode from the first byte, WebSocket after its 101.
 *
 * Each direction is read only as fast as the other side takes it; an end of file is passed on once everything before it was
 * sent, and the other direction goes on.
 */
#include "engine.h"
#include "proxy.h"

static void tunnel_alive(struct session *s)
{
    struct worker_state *w = s->worker;
    arm_timer(w, &s->timer, TIMER_TUNNEL, w->settings->timeout_tunnel_ns);
}

/* tcp mode: a new client, or http mode: the server agreed to the upgrade. */
void tunnel_start(struct session *s)
{
    struct worker_state *w = s->worker;
    if (w->service->mode == MODE_TCP) {
        w->now_ns = worker_clock_ns();
        s->state = SESSION_CONNECTING;
        s->opened_ns = w->now_ns;
        s->request.done = true;
        s->held_n = 0;
        request_dispatch(s);
        return;
    }
    s->state = SESSION_TUNNEL;
    timer_clear(&s->up->timer);
    tunnel_connected(s);
    if (s->in_n) {                          /* the client did not wait for the 101 */
        conn_push(&s->up->conn, s->in, s->in_at, s->in_n);
        session_drop_input(s);
    }
    conn_flush(&s->client);
    conn_flush(&s->up->conn);
    if (s->client_eof)
        tunnel_received(s, true, NULL, NULL, 0);
}

void tunnel_connected(struct session *s)
{
    s->state = SESSION_TUNNEL;
    tunnel_alive(s);
    request_drop_held(s);
    if (!s->client_eof)
        conn_receive(&s->client, false);
    conn_receive(&s->up->conn, false);
}

static void tunnel_end(struct session *s, char termination, enum outcome outcome)
{
    session_end_flow(s, termination, outcome);
    session_close(s, false);
}

/* Both sides have ended and everything was sent. */
static bool both_ended(const struct session *s)
{
    return s->client_eof && s->up->eof && s->client.out_n == 0 && s->up->conn.out_n == 0;
}

void tunnel_received(struct session *s, bool from_client, struct buffer *buffer, char *at, int n)
{
    struct worker_state *w = s->worker;
    struct conn *to = from_client ? &s->up->conn : &s->client;
    struct conn *from = from_client ? &s->client : &s->up->conn;
    if (n < 0) {
        if (from_client)
            tunnel_end(s, 'C', OUTCOME_CLIENT_ABORT);
        else
            session_abort(s, 'S', OUTCOME_SERVER_ABORT);
        return;
    }
    tunnel_alive(s);
    if (n == 0) {
        *(from_client ? &s->client_eof : &s->up->eof) = true;
        if (both_ended(s)) {
            w->now_ns = worker_clock_ns();
            tunnel_end(s, '-', OUTCOME_OK);
        } else if (to->out_n) {
            to->want_drained = true;
        } else {
            conn_shutdown(to);
        }
        return;
    }
    if (!from_client && s->first_byte_ns == 0)
        s->first_byte_ns = w->now_ns;
    *(from_client ? &s->bytes_in : &s->bytes_out) += (uint64_t)n;
    if (!from_client)
        COUNT(w, bytes_out, n);
    conn_push(to, buffer, at, (uint32_t)n);
    if (backlogged(to)) {
        to->want_drained = true;
        conn_flush(to);
    } else {
        conn_flush(to);
        conn_receive(from, n >= BUFFER_SMALL_READ);     /* a full small buffer: more is coming than messages */
    }
}

void tunnel_sent(struct session *s, bool to_client, int error)
{
    if (error) {
        if (to_client)
            tunnel_end(s, 'C', OUTCOME_CLIENT_ABORT);
        else
            session_abort(s, 'S', OUTCOME_SERVER_ABORT);
        return;
    }
    tunnel_alive(s);
    struct conn *to = to_client ? &s->client : &s->up->conn;
    struct conn *from = to_client ? &s->up->conn : &s->client;
    bool from_ended = to_client ? s->up->eof : s->client_eof;
    if (!from_ended)
        conn_receive(from, true);
    else if (both_ended(s))
        tunnel_end(s, '-', OUTCOME_OK);
    else
        conn_shutdown(to);
}
