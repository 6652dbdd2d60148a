/* The making of a simulation, its scheduled events, and the supervisor's part in it: the settings in every segment. */
#include "world.h"
#include "../../shm_layout/access.h"
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct settings *settings_of(struct sim *sim)
{
    return (struct settings *)sim->settings;
}

static struct server_entry *entry_of(struct sim *sim, uint32_t server)
{
    return (struct server_entry *)(sim->settings + sizeof(struct settings)) + server;
}

/* Publish the settings once into each segment. */
static int publish(struct sim *sim)
{
    settings_of(sim)->version++;
    for (uint32_t b = 0; b < sim->config.n_balancers; b++) {
        bool seen = false;
        for (uint32_t a = 0; a < b; a++)
            seen |= sim->segments[a] == sim->segments[b];
        if (seen)
            continue;
        const struct segment_header *h = sim->segments[b];
        int error = segment_publish(sim->segments[b], h->off_settings, sim->settings, sim->settings_bytes, 1);
        if (error != 0)
            return error;
    }
    return 0;
}

static void write_settings(struct sim *sim, const struct sim_config *c)
{
    struct settings *s = settings_of(sim);
    s->n_slots = c->n_servers;
    s->fallback_rule = c->fallback_rule;
    s->fallback_curve = c->fallback_curve;
    s->fallback_choices = c->fallback_choices;
    s->maxconn = IN_FLIGHT_MAX;
    s->queue_slots = c->queue_slots;
    s->retries = c->retries;
    s->retry_budget_percent = 100;
    s->sample_durations = 2;
    s->accepting = 1;
    s->stale_after_ns = c->stale_after_ns;
    for (uint32_t i = 0; i < c->n_servers; i++) {
        const struct sim_server *from = &c->servers_array[i];
        struct server_entry *e = entry_of(sim, i);
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)(i + 1)),
                                       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        e->id = from->state == SERVER_FREE ? 0 : from->id;
        e->state = from->state;
        e->health = HEALTH_UP;
        e->weight = from->weight;
        e->maxconn = from->maxconn;
        e->backup = from->backup;
        e->address_bytes = sizeof address;
        memcpy(e->address, &address, sizeof address);
        snprintf(e->name, sizeof e->name, "s%u", (unsigned)i);
    }
}

static bool event_valid(const struct sim *sim, const struct sim_event *e)
{
    if (e->kind >= SIM_EVENTS || (e->kind != SIM_EVENT_RATE && e->server >= sim->config.n_servers) || !isfinite(e->value))
        return false;
    switch (e->kind) {
    case SIM_EVENT_SPEED:
        return e->value >= 0;
    case SIM_EVENT_WEIGHT:
        return e->value >= 0 && e->value <= 256;
    case SIM_EVENT_RATE:
        return e->value > 0 || (e->value == 0 && sim->config.arrival != SIM_ARRIVAL_TRACE);
    case SIM_EVENT_HEALTH:
        return e->value >= 0 && e->value <= HEALTH_EJECTED;
    default:
        return true;
    }
}

int sim_schedule(struct sim *sim, const struct sim_event *event)
{
    if (!event_valid(sim, event))
        return -EINVAL;
    if (sim->n_events == sim->events_room) {
        uint64_t room = sim->events_room > 0 ? 2 * sim->events_room : 16;
        struct sim_event *more = realloc(sim->events, room * sizeof *more);
        if (more == NULL)
            return -ENOMEM;
        sim->events = more;
        sim->events_room = room;
    }
    /* After all of the same time: what was scheduled first happens first. */
    uint64_t i = sim->n_events++;
    uint64_t at_ns = event->at_ns > sim->now_ns ? event->at_ns : sim->now_ns;
    for (; i > sim->next_event && sim->events[i - 1].at_ns > at_ns; i--)
        sim->events[i] = sim->events[i - 1];
    sim->events[i] = *event;
    sim->events[i].at_ns = at_ns;
    return 0;
}

/* The health checks will find it so. */
static void detect(struct sim *sim, uint32_t server, enum server_health health)
{
    struct sim_event seen = { .at_ns = sim->now_ns + sim->config.detect_ns, .kind = SIM_EVENT_HEALTH, .server = server,
                              .value = health };
    int error = sim_schedule(sim, &seen);
    if (error != 0)
        sim->error = error;
}

static bool configure(struct sim *sim, uint32_t server, enum server_state state)
{
    struct server *s = &sim->servers[server];
    struct server_entry *e = entry_of(sim, server);
    server_advance(s, sim->now_ns);
    s->present = state != SERVER_FREE;
    e->state = state;
    e->id = s->present ? s->id : 0;
    return true;
}

bool sim_apply(struct sim *sim, struct sim_event event)
{
    struct server *s = &sim->servers[event.server < sim->config.n_servers ? event.server : 0];
    struct server_entry *e = entry_of(sim, event.server < sim->config.n_servers ? event.server : 0);
    bool changed = false;
    switch (event.kind) {
    case SIM_EVENT_SPEED:
        server_set_speed(s, sim->now_ns, event.value);
        sim_touch(sim, event.server);
        break;
    case SIM_EVENT_CRASH:
        if (s->alive) {
            detect(sim, event.server, HEALTH_DOWN);
            sim_lose_flows(sim, event.server);
        }
        break;
    case SIM_EVENT_RECOVER:
        if (!s->alive) {
            s->alive = true;
            detect(sim, event.server, HEALTH_UP);
        }
        break;
    case SIM_EVENT_JOIN:
        changed = configure(sim, event.server, SERVER_READY);
        break;
    case SIM_EVENT_LEAVE:
        changed = configure(sim, event.server, SERVER_FREE);
        break;
    case SIM_EVENT_DRAIN:
        changed = configure(sim, event.server, SERVER_DRAIN);
        break;
    case SIM_EVENT_WEIGHT:
        e->weight = (uint32_t)event.value;
        changed = true;
        break;
    case SIM_EVENT_RATE:
        source_set_rate(&sim->source, sim->now_ns, event.value);
        break;
    case SIM_EVENT_HEALTH:
        e->health = (uint32_t)event.value;
        changed = true;
        break;
    }
    if (changed) {
        int error = publish(sim);
        if (error != 0)
            sim->error = error;
    }
    return changed;
}

static bool config_valid(const struct sim_config *c)
{
    if (!(c->gold >= 0 && c->bronze >= 0 && c->gold + c->bronze <= 1 + 1e-9))
        return false;
    if (c->n_servers < 1 || c->n_servers > SERVERS_LIMIT || c->servers_array == NULL || c->retries > 255 ||
        c->n_balancers < 1 || c->n_balancers > UINT16_MAX || c->balancers_array == NULL || c->fallback_rule >= RULES ||
        (c->n_events > 0 && c->events_array == NULL) || (c->records_max > 0 && c->records == NULL))
        return false;
    for (uint32_t i = 0; i < c->n_servers; i++) {
        const struct sim_server *s = &c->servers_array[i];
        if (s->id == 0 || s->state > SERVER_MAINT || s->service > SIM_SHARING || s->workers < 1 || s->workers > IN_FLIGHT_MAX ||
            s->weight > 256 || !(s->speed >= 0) || !isfinite(s->speed) || s->delay_ns >= 1ULL << 60)
            return false;
    }
    for (uint32_t b = 0; b < c->n_balancers; b++) {
        const struct segment_header *h = c->balancers_array[b].segment;
        if (h == NULL || h->magic != SEGMENT_MAGIC || h->max_servers < c->n_servers ||
            c->balancers_array[b].worker >= h->max_workers)
            return false;
    }
    return true;
}

static int make_balancers(struct sim *sim, const struct sim_config *c)
{
    for (uint32_t b = 0; b < c->n_balancers; b++) {
        void *segment = sim->segments[b];
        size_t size = (balancer_size(segment) + 63) / 64 * 64;
        void *memory = aligned_alloc(64, size);
        if (memory == NULL)
            return -ENOMEM;
        memset(memory, 0, size);
        if (c->balancers_array[b].worker == 0)
            balancer_repair(segment, sim_now_ns(sim));
        uint64_t seed = rng_mix(c->seed ^ rng_mix(b + 1000));
        sim->balancers[b] = balancer_create(memory, segment, c->balancers_array[b].worker, seed, sim_now_ns(sim));
        if (sim->balancers[b] == NULL) {
            free(memory);
            return -EINVAL;
        }
        balancer_worker(sim->balancers[b])->backend = 3;
    }
    return 0;
}

int sim_create(const struct sim_config *c, struct sim **out)
{
    if (!config_valid(c))
        return -EINVAL;
    struct sim *sim = calloc(1, sizeof *sim);
    if (sim == NULL)
        return -ENOMEM;
    int error = source_init(&sim->source, c);
    if (error != 0) {
        free(sim);
        return error;
    }
    sim->config = *c;
    sim->config.servers_array = NULL;
    sim->config.balancers_array = NULL;
    sim->config.events_array = NULL;
    sim->leaves = 1;
    while (sim->leaves < c->n_servers)
        sim->leaves *= 2;
    sim->next_tick_ns = c->sample_ns > 0 ? c->sample_ns : NEVER;
    sim->settings_bytes = sizeof(struct settings) + (uint64_t)c->n_servers * sizeof(struct server_entry);
    sim->tree = malloc(2 * (size_t)sim->leaves * sizeof *sim->tree);
    sim->servers = calloc(c->n_servers, sizeof *sim->servers);
    sim->balancers = calloc(c->n_balancers, sizeof(struct balancer *));
    sim->waiting = calloc(c->n_balancers, sizeof *sim->waiting);
    sim->segments = calloc(c->n_balancers, sizeof(void *));
    sim->settings = calloc(1, sim->settings_bytes);
    error = -ENOMEM;
    if (sim->tree == NULL || sim->servers == NULL || sim->balancers == NULL || sim->waiting == NULL || sim->segments == NULL ||
        sim->settings == NULL)
        goto fail;
    for (uint32_t i = 0; i < 2 * sim->leaves; i++)
        sim->tree[i] = NEVER;
    for (uint32_t i = 0; i < c->n_servers; i++) {
        if ((error = server_init(&sim->servers[i], &c->servers_array[i])) != 0)
            goto fail;
    }
    for (uint32_t b = 0; b < c->n_balancers; b++)
        sim->segments[b] = c->balancers_array[b].segment;
    write_settings(sim, c);
    if ((error = publish(sim)) != 0 || (error = make_balancers(sim, c)) != 0)
        goto fail;
    for (uint64_t i = 0; i < c->n_events; i++) {
        if ((error = sim_schedule(sim, &c->events_array[i])) != 0)
            goto fail;
    }
    *out = sim;
    return 0;

fail:
    sim_destroy(sim);
    return error;
}

void sim_destroy(struct sim *sim)
{
    if (sim == NULL)
        return;
    for (uint32_t i = 0; sim->servers != NULL && i < sim->config.n_servers; i++)
        server_free(&sim->servers[i]);
    for (uint32_t b = 0; sim->balancers != NULL && b < sim->config.n_balancers; b++)
        free(sim->balancers[b]);
    while (sim->chunks != NULL) {
        struct job_chunk *next = sim->chunks->next;
        free(sim->chunks);
        sim->chunks = next;
    }
    source_free(&sim->source);
    free(sim->tree);
    free(sim->servers);
    free(sim->balancers);
    free(sim->waiting);
    free(sim->segments);
    free(sim->settings);
    free(sim->events);
    free(sim);
}
