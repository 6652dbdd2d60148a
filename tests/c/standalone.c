/* The socket engine without Python, for sanitizers, callgrind and debuggers: makes its own segment and settings.
 *
 *     standalone http|tcp auto|io_uring|epoll WORKERS LISTEN_PORT SERVER_PORT [SERVER_PORT …]
 *
 * Listens on 127.0.0.1; the servers are there too. Environment: MAXCONN (connections), SERVER_MAXCONN, TIMEOUT_MS
 * (http-request, client, server), QUEUE_MS, SEGMENT (use this one, made by somebody else, instead). Ends on TERM.
 */
#include "../../dataplane/socket/engine.h"
#include "../../shm_layout/access.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static uint64_t env(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static int listener(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on)
        || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) {
        perror("listen");
        exit(1);
    }
    return fd;
}

static void publish_settings(void *base, int n_servers, char **ports)
{
    const struct segment_header *header = base;
    size_t bytes = sizeof(struct settings) + (size_t)n_servers * sizeof(struct server_entry);
    struct settings *settings = calloc(1, bytes);
    uint64_t timeout_ns = env("TIMEOUT_MS", 30000) * 1000000;
    *settings = (struct settings){
        .version = 1, .n_slots = (uint32_t)n_servers, .fallback_rule = RULE_BIDS, .fallback_curve = FALLBACK_LSQ, .maxconn = (uint32_t)env("MAXCONN", 10000),
        .queue_slots = 1024, .retries = 3, .retry_budget_percent = 20, .sample_durations = 4, .accepting = 1,
        .stale_after_ns = 3000000000ULL, .timeout_http_request_ns = timeout_ns, .timeout_http_keep_alive_ns = 60000000000ULL,
        .timeout_connect_ns = 1000000000ULL, .timeout_client_ns = timeout_ns, .timeout_server_ns = timeout_ns,
        .timeout_queue_ns = env("QUEUE_MS", timeout_ns / 1000000) * 1000000, .timeout_tunnel_ns = 3600000000000ULL};
    struct server_entry *servers = (struct server_entry *)(settings + 1);
    for (int i = 0; i < n_servers; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(ports[i])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        servers[i] = (struct server_entry){.id = (uint64_t)i + 1, .state = SERVER_READY, .weight = 1, .maxconn = (uint32_t)env("SERVER_MAXCONN", 0),
                                           .address_bytes = sizeof address};
        memcpy(servers[i].address, &address, sizeof address);
        snprintf(servers[i].name, sizeof servers[i].name, "s%d", i + 1);
    }
    int error = segment_publish(base, header->off_settings, settings, bytes, 1);
    if (error) {
        fprintf(stderr, "settings: %s\n", segment_strerror(error));
        exit(1);
    }
    free(settings);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: standalone http|tcp auto|io_uring|epoll WORKERS LISTEN_PORT SERVER_PORT …\n");
        return 2;
    }
    struct socket_service service = {.mode = strcmp(argv[1], "tcp") == 0 ? MODE_TCP : MODE_HTTP,
                                     .io = strcmp(argv[2], "epoll") == 0 ? IO_EPOLL : strcmp(argv[2], "io_uring") == 0 ? IO_URING : IO_AUTO,
                                     .workers = (uint32_t)atoi(argv[3])};
    struct segment_limits limits = {.max_servers = 64, .max_workers = 8, .reservoir_slots = 128, .ring_slots = 1024, .journal_slots = 1024, .table_slots = 65537};
    char own[64];
    const char *name = getenv("SEGMENT");
    void *base = NULL;
    if (!name) {
        snprintf(own, sizeof own, "/vickrey.standalone.%d", (int)getpid());
        name = own;
        int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        int64_t bytes = segment_size(&limits);
        if (fd < 0 || bytes < 0 || ftruncate(fd, bytes)
            || (base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED
            || segment_format(base, (uint64_t)bytes, &limits, "standalone", (uint64_t)getpid(), segment_now_ns())) {
            perror(name);
            return 1;
        }
        close(fd);
        publish_settings(base, argc - 5, argv + 5);
    }
    snprintf(service.segment, sizeof service.segment, "%s", name);
    for (uint32_t i = 0; i < service.workers; i++)
        service.listen_fds[i] = listener((uint16_t)atoi(argv[4]));
    char error[256] = "";
    int code = socket_engine_run(&service, 1, 0, error, sizeof error);
    if (code)
        fprintf(stderr, "standalone: %s\n", error);
    if (base) {
        const struct segment_header *header = base;
        for (uint32_t w = 0; w < service.workers; w++) {
            const struct worker *worker = (const struct worker *)((const char *)base + header->off_workers) + w;
            fprintf(stderr, "worker %u: requests %llu bad %llu here %llu retries %llu open %llu queued %llu exhausted %llu\n", w,
                    (unsigned long long)worker->requests_total, (unsigned long long)worker->requests_bad,
                    (unsigned long long)worker->answered_here, (unsigned long long)worker->retries,
                    (unsigned long long)worker->connections, (unsigned long long)worker->queued, (unsigned long long)worker->blocks_exhausted);
        }
        uint64_t words[64], in_flight = 0;
        segment_read_words(base, 0, limits.max_servers, words);
        for (uint32_t i = 0; i < limits.max_servers; i++)
            in_flight += words[i] >> 48;
        fprintf(stderr, "in flight %llu\n", (unsigned long long)in_flight);
        shm_unlink(name);
    }
    return code ? 1 : 0;
}
