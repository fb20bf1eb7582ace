// load2: what load.c of the yardsticks does for packets, for frames of protocol 2 and for D-Bus; and loads at a stated rate.
//   load2 PROTO SOCKET tput COUNT BATCH    one sender, one receiver, BATCH messages a write(): "msg/s N"
//   load2 PROTO SOCKET rtt COUNT           a ping-pong: "p50 US p99 US"
//   load2 2 SOCKET memfd COUNT BYTES       a ping-pong of frames of memory: a sealed memfd one way, a message back
//   load2 2 SOCKET mapped COUNT BYTES      the same, and who gets it looks at its seals, maps it and reads both its ends
//   load2 PROTO SOCKET pair SECONDS RATE   a ping-pong of RATE round trips a second
//   load2 2 SOCKET idle COUNT              COUNT connections that have registered: "begun"; ends with its standard input
//   load2 PROTO SOCKET ABUSE SECONDS RATE  "begun", and in the end "N/s" as it came about. ABUSE is
//     stuck: RATE messages a second to a receiver that never reads    slow: to one that reads a byte a second
//     flood: to one that reads all there is     vanish: RATE connections a second that are closed within a frame
// PROTO: 1, 2 | raw (relay.c of the yardsticks) | dbus. Messages have 552 bytes, of D-Bus a body of so many.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 552, ROOM = 1024, HEADER = 32, HELLO = 1, REGISTER = 3, MESSAGE = 4, TAKES_FDS = 32 };

static int proto; // 'r' is raw, 'd' is dbus
static const char *path;
static long count;
static uint64_t session; // of the connection made last

static void die(const char *what) {
    fprintf(stderr, "load2: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void wait_until(double due) {
    struct timespec t = {.tv_sec = due, .tv_nsec = (due - (long)due) * 1e9};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0);
}

static void put(int fd, const void *b, size_t n) {
    for (const char *p = b; n;) {
        ssize_t k = write(fd, p, n);
        if (k < 0) die("write");
        p += k, n -= k;
    }
}

static void get(int fd, void *b, size_t n) {
    for (char *p = b; n;) {
        ssize_t k = read(fd, p, n);
        if (k <= 0) die("read (a message is lost or late)");
        p += k, n -= k;
    }
}

// frame lays out one frame of protocol 2 and returns its size. All machines that this runs on are little-endian.
static uint32_t frame(unsigned char *b, int type, int flags, int fds, uint64_t id, const char *to, const char *from, uint32_t body) {
    uint32_t tl = strlen(to), fl = strlen(from), size = HEADER + tl + fl + body;
    memset(b, 0, HEADER);
    memcpy(b, &size, 4);
    b[4] = type, b[5] = flags, b[7] = fds;
    memcpy(b + 8, &session, 8);
    memcpy(b + 16, &id, 8);
    b[28] = tl, b[29] = fl;
    memcpy(b + HEADER, to, tl);
    memcpy(b + HEADER + tl, from, fl);
    memset(b + HEADER + tl + fl, 'x', body);
    return size;
}

static uint32_t packet(unsigned char *b, int cmd, const char *to, const char *from) {
    memset(b, cmd == 2 ? 'x' : 0, SIZE);
    memset(b, 0, 40);
    strcpy((char *)b, "head");
    b[12] = cmd;
    memcpy(b + 20, to, strlen(to)); // at most ten bytes
    memcpy(b + 30, from, strlen(from));
    return SIZE;
}

// call lays out a method call of D-Bus and returns its size: path, interface, member, destination, signature, body.
static uint32_t call(unsigned char *b, int flags, const char *fields[5], const void *body, uint32_t n) {
    static const unsigned char codes[] = {1, 2, 3, 6, 8};
    uint32_t serial = 1, length;
    unsigned char *p = b + 16;
    memset(b, 0, ROOM);
    b[0] = 'l', b[1] = 1, b[2] = flags, b[3] = 1;
    memcpy(b + 4, &n, 4);
    memcpy(b + 8, &serial, 4);
    for (int i = 0; i < 5; i++) {
        if (!*fields[i]) continue;
        p = b + (p - b + 7) / 8 * 8;
        p[0] = codes[i], p[1] = 1, p[2] = "osssg"[i], length = strlen(fields[i]);
        memcpy(p + 4, &length, i < 4 ? 4 : 1);
        p += i < 4 ? 8 : 5;
        strcpy((char *)p, fields[i]);
        p += length + 1;
    }
    length = p - b - 16;
    memcpy(b + 12, &length, 4);
    p = b + (p - b + 7) / 8 * 8;
    memcpy(p, body, n);
    return p - b + n;
}

static uint32_t ask_bus(unsigned char *b, const char *member, const char *signature, const void *body, uint32_t n) {
    return call(b, 0, (const char *[]){"/", "org.freedesktop.DBus", member, "org.freedesktop.DBus", signature}, body, n);
}

// get_message reads one message; *size is what it has, 0: not known yet. All of one receiver have the same.
static void get_message(int fd, unsigned char *b, size_t *size) {
    size_t have = 0;
    if (proto != 'd') *size = SIZE;
    if (!*size) {
        uint32_t body, fields;
        get(fd, b, have = 16);
        memcpy(&body, b + 4, 4), memcpy(&fields, b + 12, 4);
        *size = 16 + (fields + 7) / 8 * 8 + body;
    }
    if (*size > ROOM) die("a message is too long");
    get(fd, b + have, *size - have);
}

static int dial(void) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct timeval tv = {.tv_sec = 20};
    strncpy(a.sun_path, path, sizeof a.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (void *)&a, sizeof a)) die("connect");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    return fd;
}

// hello lays out what a connection of protocol 2 begins with, under a session of its own.
static uint32_t hello(unsigned char *b) {
    static uint32_t connections;
    session = (uint64_t)getpid() << 32 | ++connections;
    memcpy(b, "\xa7ZHX\r\n\x02\x00", 8);
    return 8 + frame(b + 8, HELLO, TAKES_FDS, 0, 1, "", "", 0);
}

// receiver connects and receives under a name, at most eight bytes.
static int receiver(const char *me) {
    unsigned char b[ROOM];
    char name[64];
    int fd = dial();
    uint32_t n;
    switch (proto) {
    case '1':
        put(fd, b, packet(b, 0, "null", me));
        put(fd, b, packet(b, 2, me, me)); // nothing is answered: but who hears itself is registered
        get(fd, b, SIZE);
        break;
    case '2':
        put(fd, b, hello(b));
        get(fd, b, HEADER); // WELCOME has no names
        put(fd, b, frame(b, REGISTER, 0, 0, 2, "", me, 0));
        get(fd, b, HEADER); // ACK has none either
        if (b[4] != 8) die("register");
        break;
    case 'r':
        b[0] = 'R';
        strncpy((char *)b + 1, me, 8);
        put(fd, b, 9);
        break;
    case 'd':
        put(fd, b, sprintf((char *)b, "%cAUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", 0));
        for (int lines = 0; lines < 2; lines += b[0] == '\n') get(fd, b, 1); // DATA, OK
        put(fd, b, ask_bus(b, "Hello", "", 0, 0));
        memset(name, 0, sizeof name);
        n = sprintf(name + 4, "zhx.%s", me);
        memcpy(name, &n, 4);
        put(fd, b, ask_bus(b, "RequestName", "su", name, (4 + n + 1 + 3) / 4 * 4 + 4));
        for (int i = 0; i < 4; i++) { // two replies, two signals NameAcquired
            size_t size = 0;
            get_message(fd, b, &size);
            if (b[1] == 3) die("D-Bus refuses");
        }
    }
    return fd;
}

// sender gives the connection by which the receiver fd sends to a name.
static int sender(int fd, const char *to) {
    char b[10] = "S";
    if (proto != 'r') return fd;
    strncpy(b + 1, to, 8);
    put(fd = dial(), b, 9);
    return fd;
}

// message lays out one message and returns its size.
static uint32_t message(unsigned char *b, const char *to, const char *from) {
    char name[64];
    unsigned char body[4 + SIZE] = {SIZE & 255, SIZE >> 8};
    switch (proto) {
    case '1':
        return packet(b, 2, to, from);
    case '2':
        return frame(b, MESSAGE, 0, 0, 3, to, from, SIZE - HEADER - strlen(to) - strlen(from));
    case 'd':
        sprintf(name, "zhx.%s", to);
        return call(b, 1, (const char *[]){"/", "zhx.Load", "Message", name, "ay"}, body, sizeof body);
    }
    memset(b, 'x', SIZE);
    return SIZE;
}

static void *drain(void *arg) {
    static unsigned char b[1 << 18];
    size_t size = 0;
    get_message(*(int *)arg, b, &size);
    for (long left = (count - 1) * size; left > 0;) {
        ssize_t k = read(*(int *)arg, b, sizeof b);
        if (k <= 0) die("read (a message is lost or late)");
        left -= k;
    }
    return 0;
}

static void throughput(long batch) {
    int in = receiver("b"), out = sender(receiver("a"), "b");
    unsigned char *b = malloc(batch * ROOM);
    uint32_t n = 0, size = 0;
    uint64_t id = 3;
    for (long i = 0; i < batch; i++) n += size = message(b + n, "b", "a");
    pthread_t t;
    pthread_create(&t, 0, drain, &in);
    double from = now();
    for (long i = 0; i < count; i += batch) {
        for (uint32_t at = 0; proto == '2' && at < n; at += size, id++) memcpy(b + at + 16, &id, 8);
        put(out, b, n);
    }
    pthread_join(t, 0);
    printf("msg/s %.0f\n", count / (now() - from));
}

static int memory = -1; // the memfd of memfd
static long bytes;      // that it has

static int by(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int mapped; // who gets a memfd looks into it

// see takes a frame with a descriptor.
static void see(int fd) {
    unsigned char b[ROOM], oob[CMSG_SPACE(sizeof(int))];
    struct iovec v = {b, sizeof b};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = oob, .msg_controllen = sizeof oob};
    uint32_t size;
    ssize_t k = recvmsg(fd, &m, 0);
    memcpy(&size, b, 4);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (k < HEADER || k != size || !c || c->cmsg_type != SCM_RIGHTS) die("recvmsg");
    struct stat st;
    memcpy(&fd, CMSG_DATA(c), sizeof fd);
    if (!mapped) {
        close(fd);
        return;
    }
    if (fstat(fd, &st) || st.st_size != bytes || !(fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE)) die("not the memfd");
    char *p = mmap(0, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED || p[0] != 'x' || p[bytes - 1] != 'x') die("the memory");
    munmap(p, bytes);
    close(fd);
}

static int ends[2]; // of pong: what it receives and sends by
static unsigned char answer[ROOM];
static uint32_t answer_size;

static void *echo(void *unused) {
    unsigned char in[ROOM];
    size_t size = 0;
    for (long i = 0; i < count; i++) {
        if (bytes)
            see(ends[0]);
        else
            get_message(ends[0], in, &size);
        put(ends[1], answer, answer_size);
    }
    return unused;
}

// pingpong counts a round trip from when it begins; where the one before it took until after it was due, from then.
static void pingpong(double rate) {
    ends[0] = receiver("pong");
    answer_size = message(answer, "ping", "pong");
    int ping = receiver("ping"), out = sender(ping, "pong");
    ends[1] = sender(ends[0], "ping");
    unsigned char b[ROOM], in[ROOM], oob[CMSG_SPACE(sizeof(int))] = {0};
    uint32_t n = message(b, "pong", "ping");
    size_t size = 0;
    struct iovec v = {b, n};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    if (bytes) {
        memory = memfd_create("frame", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (memory < 0 || ftruncate(memory, bytes)) die("memfd");
        char *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        memset(p, 'x', bytes);
        munmap(p, bytes);
        if (fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) die("seal");
        v.iov_len = n = frame(b, MESSAGE, 0, 1, 3, "pong", "ping", 8);
        m.msg_control = oob, m.msg_controllen = sizeof oob;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof memory);
        memcpy(CMSG_DATA(c), &memory, sizeof memory);
    }
    double *took = malloc(count * sizeof *took), begun = now();
    pthread_t t;
    pthread_create(&t, 0, echo, 0);
    for (long i = 0; i < count; i++) {
        double from = now(), due = rate ? begun + i / rate : from;
        if (from < due) {
            wait_until(due);
            from = now();
        } else
            from = due;
        if (!bytes)
            put(out, b, n);
        else if (sendmsg(out, &m, 0) != n)
            die("sendmsg");
        get_message(ping, in, &size);
        took[i] = (now() - from) * 1e6;
    }
    pthread_join(t, 0);
    qsort(took, count, sizeof *took, by);
    printf("p50 %.1f p99 %.1f\n", took[count / 2], took[count * 99 / 100]);
}

static void *sip(void *arg) {
    for (char c; read(*(int *)arg, &c, 1) > 0;) sleep(1);
    return 0;
}

static void *gulp(void *arg) {
    static char b[1 << 16];
    while (read(*(int *)arg, b, sizeof b) > 0);
    return 0;
}

// vanish connects and goes within its first message.
static void vanish(void) {
    unsigned char b[2 * ROOM];
    uint32_t n = 0;
    int fd = dial();
    if (proto == '2') n = hello(b);
    if (proto == 'r') n = sprintf((char *)b, "Rvanish--");
    n += message(b + n, "nobody", "vanish") / 2;
    if (write(fd, b, n) != n) die("write of one who vanishes");
    close(fd);
}

// abuse loads at a rate in messages or connections a second, in steps of a millisecond at least. Nobody waits for it: what a full
// socket or a slow zhxd keeps from being done in time is left out.
static void abuse(const char *kind, double seconds, double rate) {
    long batch = rate > 1000 ? rate / 1000 : 1, done = 0;
    unsigned char *b = malloc(batch * ROOM), answers[4096];
    uint32_t n = 0, at = 0, vanishing = !strcmp(kind, "vanish");
    int in = -1, out = -1;
    pthread_t t;
    if (!vanishing) {
        in = receiver(kind);
        char name[9] = "s-";
        out = proto == 'r' ? sender(in, kind) : receiver(strcat(name, kind));
        for (long i = 0; i < batch; i++) n += message(b + n, kind, name);
        if (strcmp(kind, "stuck")) pthread_create(&t, 0, *kind == 's' ? sip : gulp, &in);
    }
    puts("begun");
    fflush(stdout);
    double begun = now(), due = begun;
    while (now() < begun + seconds) {
        due += batch / rate;
        if (due < now() - 0.1) due = now();
        wait_until(due);
        if (vanishing) {
            vanish();
            done++;
            continue;
        }
        ssize_t k = send(out, b + at, n - at, MSG_DONTWAIT);
        if (k < 0 && errno != EAGAIN) die("send");
        if (k > 0 && (at += k) == n) at = 0, done += batch;
        while (recv(out, answers, sizeof answers, MSG_DONTWAIT) > 0);
    }
    printf("%.0f/s\n", done / (now() - begun));
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    const char *what = argv[3];
    double rate = argc > 5 ? atof(argv[5]) : 0;
    proto = argv[1][0], path = argv[2], count = atol(argv[4]);
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(what, "tput")) {
        throughput(rate);
    } else if (!strcmp(what, "rtt")) {
        pingpong(0);
    } else if (!strcmp(what, "memfd") || !strcmp(what, "mapped")) {
        mapped = what[1] == 'a';
        bytes = rate;
        pingpong(0);
    } else if (!strcmp(what, "pair")) {
        count *= rate;
        pingpong(rate);
    } else if (!strcmp(what, "idle")) {
        struct rlimit files = {count + 64, count + 64};
        if (setrlimit(RLIMIT_NOFILE, &files)) die("setrlimit");
        for (long i = 0; i < count; i++) {
            char name[32];
            sprintf(name, "idle-%ld", i);
            receiver(name);
        }
        puts("begun");
        fflush(stdout);
        getchar();
    } else
        abuse(what, count, rate);
    return 0;
}
