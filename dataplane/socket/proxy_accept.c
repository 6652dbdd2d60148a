/* Clients come in: as many as the limits of connections and descriptors allow; the rest waits in the listener's backlog. */
#include "engine.h"
#include "proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void list_add(struct worker_state *w, struct session *s)
{
    s->next = NULL;
    s->prev = w->sessions.last;
    if (w->sessions.last)
        w->sessions.last->next = s;
    else
        w->sessions.first = s;
    w->sessions.last = s;
    w->sessions.n++;
}

static bool in_network(const uint8_t address[16], const struct cidr *net)
{
    uint32_t bits = net->prefix_bits > 128 ? 128 : net->prefix_bits;
    if (memcmp(address, net->address, bits / 8) != 0)
        return false;
    uint32_t rest = bits % 8;
    return rest == 0 || ((address[bits / 8] ^ net->address[bits / 8]) >> (8 - rest)) == 0;
}

/* Who the client is: 16 bytes (IPv4 mapped), a port, and text for X-Forwarded-For. A unix socket's client has no address. */
static void name_client(struct session *s, int fd)
{
    struct sockaddr_storage peer = {0};
    socklen_t bytes = sizeof peer;
    memset(s->client_address, 0, sizeof s->client_address);
    s->client_port = 0;
    s->trusted = false;
    memcpy(s->client_text, "unknown", 8);
    if (getpeername(fd, (struct sockaddr *)&peer, &bytes) == 0) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&peer;
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&peer;
        if (peer.ss_family == AF_INET) {
            s->client_address[10] = s->client_address[11] = 0xff;
            memcpy(s->client_address + 12, &v4->sin_addr, 4);
            s->client_port = ntohs(v4->sin_port);
            inet_ntop(AF_INET, &v4->sin_addr, s->client_text, CLIENT_TEXT);
        } else if (peer.ss_family == AF_INET6) {
            memcpy(s->client_address, &v6->sin6_addr, 16);
            s->client_port = ntohs(v6->sin6_port);
            if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
                inet_ntop(AF_INET, s->client_address + 12, s->client_text, CLIENT_TEXT);
            else
                inet_ntop(AF_INET6, &v6->sin6_addr, s->client_text, CLIENT_TEXT);
        }
        const struct settings *settings = s->worker->settings;
        for (uint32_t i = 0; i < settings->n_trusted && i < TRUSTED_MAX && !s->trusted; i++)
            s->trusted = peer.ss_family != AF_UNIX && in_network(s->client_address, &settings->trusted[i]);
    }
    s->client_text_n = (uint8_t)strlen(s->client_text);
}

static void pause_accepting(struct worker_state *w, uint64_t for_ns)
{
    w->accept_again_ns = timer_now(w) + for_ns;
    loop_accept(&w->loop, false);
}

static bool has_room(const struct worker_state *w)
{
    uint32_t limit = (w->settings->maxconn + w->service->workers - 1) / w->service->workers;
    return w->sessions.n < limit && w->sessions.n < w->session_limit;
}

/* The lowest descriptor that is free says how many are in use. */
static bool has_descriptors(const struct worker_state *w)
{
    int fd = fcntl(w->loop.wake_fd, F_DUPFD_CLOEXEC, 0);
    if (fd >= 0)
        close(fd);
    return fd >= 0 && fd < w->fd_limit;
}

void session_limit_changed(struct worker_state *w)
{
    if (!has_room(w) && w->accept_again_ns == 0 && !w->draining)
        pause_accepting(w, 1000000000);
}

void session_accept_again(struct worker_state *w)
{
    if (w->accept_again_ns == 0 || w->draining || !has_room(w) || !has_descriptors(w))
        return;
    w->accept_again_ns = 0;
    loop_accept(&w->loop, true);
}

void session_accepted(struct loop *loop, int fd, int error)
{
    struct worker_state *w = loop->owner;
    if (error) {                            /* no descriptors, no memory: what is open goes on, the rest waits in the backlog */
        COUNT(w, accept_paused, 1);
        pause_accepting(w, 100000000);
        return;
    }
    struct session *s = session_take(w);
    if (!s) {
        COUNT(w, connections_refused, 1);
        struct linger hard = {.l_onoff = 1, .l_linger = 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        close(fd);
        return;
    }
    memset(s, 0, sizeof *s);
    s->worker = w;
    s->flow.server = NO_SERVER;
    s->sla = (uint8_t)w->settings->sla_default;
    conn_open(loop, &s->client, fd, &session_events);
    name_client(s, fd);
    s->client.once = true;                  /* until it has shown that it sends more than one request */
    list_add(w, s);
    COUNT(w, connections_total, 1);
    COUNT(w, connections, 1);
    if (!has_room(w)) {
        pause_accepting(w, 1000000000);     /* or until a connection closes */
    } else if (fd >= w->fd_limit) {
        COUNT(w, accept_paused, 1);
        pause_accepting(w, 100000000);
    }
    if (w->service->mode == MODE_TCP) {
        tunnel_start(s);
        return;
    }
    s->state = SESSION_HEAD;
    arm_timer(w, &s->timer, TIMER_REQUEST, w->settings->timeout_http_request_ns);
    conn_receive(&s->client, false);
}
