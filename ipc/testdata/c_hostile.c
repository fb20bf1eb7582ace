/* Uses every function of zhx.h against a server that does everything wrong, for $MS milliseconds, with all sanitizers on. It ends
 * with 0 if it has come to no harm: as many descriptors open as before, no call that waited longer than it was told to, and nothing
 * allocated but by zhx_open. Before that it does without a server. zhx.c is compiled with -Dmalloc=counted. */
#define _POSIX_C_SOURCE 200809L
#include "zhx.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static unsigned long handles, turned, events, ups, messages, answers, asked, answered, sum, allocated;

void *counted(size_t n)
{
    allocated++;
    return calloc(1, n);
}

static long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int descriptors(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static int on_reply(zhx *h, struct zhx_event *e, void *arg)
{
    (void)h, (void)arg, (void)e;
    answered++;
    return ZHX_DONE;
}

static int on_event(zhx *h, struct zhx_event *e, void *arg)
{
    size_t i;
    (void)arg;
    events++;
    for (i = 0; i < e->len; i++) sum += e->body[i];
    sum += strlen(e->to) + strlen(e->from);
    if (e->type == ZHX_EV_UP) ups++;
    if (e->type == ZHX_EV_ACK || e->type == ZHX_EV_REPLY) answers++;
    if (e->nfds > 0 && events % 2) { /* take one */
        close(e->fd[0]);
        e->fd[0] = -1;
    }
    if (e->type == ZHX_EV_REQUEST) zhx_reply(h, e->session, e->id, 0, e->body, e->len);
    if (e->type != ZHX_EV_MESSAGE) return ZHX_DONE;
    messages++;
    zhx_send(h, "other", (int)(events % 3), e->body, e->len, NULL);
    if (zhx_process(h, -1) != ZHX_BUSY || zhx_flush(h, -1) != ZHX_BUSY || zhx_call(h, "x", "", 0, NULL, 0, NULL, -1) != ZHX_BUSY) abort();
    if (events % 5 == 0) zhx_pause(h, 1);
    if (events % 3) return ZHX_DONE;
    if (events % 2) zhx_ack(h, e->session, e->id);
    return ZHX_LATER;
}

static void use(zhx *h, int n)
{
    static char body[5000];
    struct zhx_message m;
    uint64_t id = 0;
    int fds[2] = {0, 1};
    char reply[10];
    size_t len;
    memset(&m, 0, sizeof m);
    m.to = "other", m.body = body, m.len = 100, m.level = n % 3, m.fd = fds, m.nfds = 2, m.time_ms = 5;
    switch (n % 16) {
    case 0: zhx_send(h, "other", ZHX_HANDLED, body, (size_t)(n % 5000), &id); break;
    case 1: zhx_send(h, "other", ZHX_WRITTEN, body, sizeof body, &id); break;
    case 2: zhx_send_message(h, &m, &id); break;
    case 3: asked += zhx_request(h, "other", body, 10, 1 + n % 50, on_reply, NULL, &id) == ZHX_OK; break;
    case 4:
        if (zhx_request(h, "other", body, 10, -1, on_reply, NULL, &id) == ZHX_OK && zhx_cancel(h, id) != ZHX_OK) abort();
        break;
    case 5: zhx_publish(h, "a.b", n % 2, ZHX_RETAIN, body, 7, &id); break;
    case 6: zhx_subscribe(h, "a.>", n % 4, 3, &id); break;
    case 7: zhx_unsubscribe(h, "a.>"); break;
    case 8: zhx_watch(h, "other"); break;
    case 9: zhx_unwatch(h, "other"); break;
    case 10: zhx_arm(h, NULL); break;
    case 11: zhx_feed(h, NULL); break;
    case 12: zhx_checkpoint(h, NULL, "half"); break;
    case 13: zhx_register(h, "second", &id); break;
    case 14: zhx_flush(h, n % 2); break;
    case 15: zhx_call(h, "other", body, 3, reply, sizeof reply, &len, n % 3); break;
    }
}

/* absent: where there is no zhxd, and that is taken well, whatever is sent succeeds without effect; a request fails. */
static int absent(void)
{
    struct zhx_options o;
    char reply[10];
    size_t len;
    int level, well = 1;
    zhx *h;
    memset(&o, 0, sizeof o);
    o.handler = on_event, o.name = "me", o.address = "/nowhere/at/all", o.flags = ZHX_OPTIONAL;
    h = zhx_open(&o, NULL);
    if (!h) return 0;
    for (level = ZHX_NONE; level <= ZHX_HANDLED; level++) {
        zhx_process(h, 0);
        well = well && zhx_send(h, "x", level, "y", 1, NULL) == ZHX_OK && zhx_publish(h, "a.b", ZHX_NONE, ZHX_RETAIN, "y", 1, NULL) == ZHX_OK &&
            zhx_subscribe(h, "a.>", 0, 0, NULL) == ZHX_OK && zhx_watch(h, "x") == ZHX_OK && zhx_arm(h, NULL) == ZHX_OK &&
            zhx_feed(h, NULL) == ZHX_OK && zhx_checkpoint(h, NULL, "half") == ZHX_OK;
    }
    well = well && zhx_call(h, "x", "y", 1, reply, sizeof reply, &len, 20) != ZHX_OK && events == 0;
    zhx_close(h);
    return well;
}

int main(void)
{
    long end = now_ms() + atol(getenv("MS"));
    int before = descriptors(), n = 0;
    if (!absent()) return 6;
    while (now_ms() < end) {
        struct zhx_options o;
        zhx *h;
        int turns;
        memset(&o, 0, sizeof o);
        o.handler = on_event, o.name = "me", o.max_body = 4096, o.keep = 8192;
        h = zhx_open(&o, NULL);
        if (!h) return 2;
        handles++;
        for (turns = 0; turns < 150; turns++, n++) {
            long began = now_ms();
            turned++;
            int r = zhx_process(h, turns % 2);
            use(h, n * 7 + turns);
            zhx_pause(h, turns % 7 == 0);
            if (now_ms() - began > 2000) return fprintf(stderr, "a turn took %ld ms\n", now_ms() - began), 3;
            if (r == ZHX_TAKEN || (turns > 5 && zhx_fd(h) < 0 && n % 8)) break; /* rather a new one than to wait */
        }
        zhx_close(h);
        n++;
    }
    printf("handles=%lu turns=%lu events=%lu ups=%lu messages=%lu answers=%lu asked=%lu answered=%lu sum=%lu\n", handles, turned, events, ups, messages, answers, asked, answered, sum);
    if (descriptors() != before) return fprintf(stderr, "%d descriptors, %d at first\n", descriptors(), before), 4;
    if (answered > asked) return 5;
    if (allocated != handles + 1) return fprintf(stderr, "%lu allocations\n", allocated), 7;
    return 0;
}
