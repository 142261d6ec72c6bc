/* load: puts load on a SOCKS5 server on this machine and measures what comes back.
 *
 *   load conn PORT TOTAL AT_ONCE            connect, echo 64 octets, close: TOTAL times, AT_ONCE of them at a time
 *   load bulk PORT down|up STREAMS SECONDS  as many octets as go through, in one direction
 *   load ping PORT STREAMS SECONDS          echo 64 octets, again and again, on each of STREAMS tunnels
 *   load idle PORT TUNNELS                  open them, print the result, hold them until standard input ends
 *
 * PORT is the server's, on 127.0.0.1. Port 0 means no server: straight to the destination, which shows the most that
 * this machine can do. The destination is a process of its own, forked at the start, on a free port.
 *
 * Prints one JSON object on a line: the figures (exit code 0), or {"error": "...", "after": COUNT} (exit code 1), where
 * COUNT is how many echoes, or else how many tunnels, had gone well. The first thing that fails ends the run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    MESSAGE = 64,              /* octets of one echo */
    CHUNK = 256 * 1024,        /* octets of one send or recv of the bulk scenarios */
    OPENING_AT_ONCE = 64,      /* tunnels that bulk, ping and idle open at a time */
    STUCK_SECONDS = 15,        /* without any event: the server has failed */
    EVENTS = 512,              /* of one turn of a loop */
    MAX_DESCRIPTORS = 1 << 20, /* the most that Linux gives a process (fs.nr_open) */
    MAX_SAMPLES = 1 << 25,     /* echoes of one run */
};

/* The first octet of a connection tells the destination what to do on it. */
enum { UNKNOWN, ECHO = 'E', SOURCE = 'S', SINK = 'D' };

static struct epoll_event events[EVENTS];
static char chunk[CHUNK];
static int poller, server_port, destination_port, destination_pid;
static long done; /* tunnels that have opened; in conn and ping the echoes that came back */
static _Atomic long long *sunk; /* octets that reached the destination's sinks; shared by both processes */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Ends the run. `format` has our own words and strerror()'s: nothing that JSON would have to escape. */
__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("{\"error\": \"");
    vprintf(format, arguments);
    printf("\", \"after\": %ld}\n", done);
    va_end(arguments);
    exit(1);
}

static struct sockaddr_in loopback(int port)
{
    struct in_addr host = {htonl(INADDR_LOOPBACK)};
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = host};
}

static void watch(int operation, int fd, uint32_t interest, epoll_data_t data)
{
    struct epoll_event event = {.events = interest, .data = data};
    if (epoll_ctl(poller, operation, fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

static bool would_block(ssize_t result)
{
    return result < 0 && (errno == EAGAIN || errno == EINTR);
}

/* ---- the destination: one process, one loop ---- */

static unsigned char modes[MAX_DESCRIPTORS];

static bool accept_connections(int listener)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        modes[fd] = UNKNOWN;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, (epoll_data_t){.fd = fd});
    }
    return true;
}

/* Reads once and does what the connection's mode says. False: the connection is over. */
static bool take(int fd)
{
    ssize_t length = recv(fd, chunk, CHUNK, 0);
    if (length <= 0)
        return would_block(length);
    if (modes[fd] == UNKNOWN) {
        modes[fd] = (unsigned char)chunk[0];
        if (modes[fd] == SOURCE)
            watch(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT, (epoll_data_t){.fd = fd});
    }
    if (modes[fd] == SINK)
        atomic_fetch_add(sunk, length);
    if (modes[fd] == ECHO) /* never more than one message is on its way: it always fits */
        return send(fd, chunk, (size_t)length, MSG_NOSIGNAL) == length;
    return true;
}

static bool give(int fd)
{
    ssize_t length = send(fd, chunk, CHUNK, MSG_NOSIGNAL);
    return length >= 0 || would_block(length);
}

__attribute__((noreturn)) static void run_destination(int listener)
{
    poller = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, (epoll_data_t){.fd = listener});
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            bool to_read = events[i].events & ~(uint32_t)EPOLLOUT;
            if (!(fd == listener ? accept_connections(fd) : to_read ? take(fd) : give(fd)))
                close(fd);
        }
    }
}

static void end_destination(void)
{
    kill(destination_pid, SIGKILL);
    waitpid(destination_pid, NULL, 0);
}

static void start_destination(void)
{
    sunk = mmap(NULL, sizeof *sunk, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = loopback(0);
    if (sunk == MAP_FAILED || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&address, &(socklen_t){sizeof address}))
        fail("the destination cannot listen: %s", strerror(errno));
    destination_port = ntohs(address.sin_port);
    destination_pid = fork();
    if (destination_pid < 0)
        fail("fork: %s", strerror(errno));
    if (destination_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* also when the load itself is killed */
        run_destination(listener);
    }
    close(listener);
    atexit(end_destination);
}

/* ---- the client's side of a tunnel ---- */

enum state { CONNECTING, GREETED, REQUESTED, OPEN };

struct tunnel {
    int fd;
    enum state state;
    size_t received;         /* octets of the answer that is awaited */
    double began;            /* connecting, or the present round trip */
    unsigned char reply[10]; /* with an IPv4 address, as the request has one */
};

static void begin(struct tunnel *tunnel)
{
    struct sockaddr_in address = loopback(server_port ? server_port : destination_port);
    *tunnel = (struct tunnel){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), .began = now()};
    if (tunnel->fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(tunnel->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(tunnel->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    watch(EPOLL_CTL_ADD, tunnel->fd, EPOLLOUT, (epoll_data_t){.ptr = tunnel});
}

static void send_octets(struct tunnel *tunnel, const void *octets, size_t length)
{
    tunnel->received = 0;
    if (send(tunnel->fd, octets, length, MSG_NOSIGNAL) < 0)
        fail("send: %s", strerror(errno));
}

/* Reads what is there, up to `wanted` octets in all since the last send. True: that many have come. */
static bool receive(struct tunnel *tunnel, void *buffer, size_t wanted)
{
    ssize_t length = recv(tunnel->fd, (char *)buffer + tunnel->received, wanted - tunnel->received, 0);
    if (length == 0)
        fail(tunnel->state == OPEN ? "the server closed a tunnel" : "the server closed during the handshake");
    if (length < 0 && !would_block(length))
        fail("recv: %s", strerror(errno));
    tunnel->received += length > 0 ? (size_t)length : 0;
    return tunnel->received == wanted;
}

/* Takes the next step of the handshake. True: the tunnel has just opened. */
static bool advance(struct tunnel *tunnel)
{
    if (tunnel->state == CONNECTING) {
        int error = 0;
        getsockopt(tunnel->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
        if (error)
            fail("connect: %s", strerror(error));
        watch(EPOLL_CTL_MOD, tunnel->fd, EPOLLIN, (epoll_data_t){.ptr = tunnel});
        if (server_port)
            send_octets(tunnel, "\x05\x01\x00", 3);
        tunnel->state = server_port ? GREETED : OPEN;
    } else if (tunnel->state == GREETED && receive(tunnel, tunnel->reply, 2)) {
        if (tunnel->reply[0] != 5 || tunnel->reply[1] != 0)
            fail("the server refused the method 'no authentication'");
        unsigned char high = (unsigned char)(destination_port >> 8), low = (unsigned char)destination_port;
        send_octets(tunnel, (unsigned char[]){5, 1, 0, 1, 127, 0, 0, 1, high, low}, 10);
        tunnel->state = REQUESTED;
    } else if (tunnel->state == REQUESTED && receive(tunnel, tunnel->reply, sizeof tunnel->reply)) {
        if (tunnel->reply[1] != 0)
            fail("the server answered with reply code %d", tunnel->reply[1]);
        tunnel->state = OPEN;
    } else if (tunnel->state == OPEN) {
        fail("the server closed a tunnel");
    }
    return tunnel->state == OPEN;
}

static int wait_events(void)
{
    static double last;
    int count = epoll_wait(poller, events, EVENTS, 100);
    if (count > 0 || last == 0)
        last = now();
    else if (now() - last > STUCK_SECONDS)
        fail("nothing happened for %d seconds", STUCK_SECONDS);
    return count;
}

static struct tunnel *open_tunnels(long total)
{
    struct tunnel *tunnels = calloc((size_t)total, sizeof *tunnels);
    for (long begun = 0; done < total;) {
        while (begun < total && begun - done < OPENING_AT_ONCE)
            begin(&tunnels[begun++]);
        int count = wait_events();
        for (int i = 0; i < count; i++)
            done += advance(events[i].data.ptr);
    }
    return tunnels;
}

/* ---- echoes and their times ---- */

static const char message[MESSAGE] = {ECHO};
static float samples[MAX_SAMPLES]; /* seconds of each, `done` of them; untouched pages cost nothing */

static void keep_sample(double seconds)
{
    if (done == MAX_SAMPLES)
        fail("too many echoes");
    samples[done++] = (float)seconds;
}

static int compare_samples(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void print_echoes(double seconds)
{
    if (!done)
        fail("not one echo came back");
    qsort(samples, (size_t)done, sizeof *samples, compare_samples);
    printf("{\"count\": %ld, \"seconds\": %.6f, \"p50\": %.7f, \"p99\": %.7f}\n", done, seconds,
        (double)samples[done / 2], (double)samples[done * 99 / 100]);
}


/* ---- the scenarios ---- */

static void run_conn(long total, long at_once)
{
    struct tunnel *tunnels = calloc((size_t)at_once, sizeof *tunnels);
    double start = now();
    long begun = 0;
    for (; begun < at_once && begun < total; begun++)
        begin(&tunnels[begun]);
    while (done < total) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            struct tunnel *tunnel = events[i].data.ptr;
            if (tunnel->state != OPEN && advance(tunnel)) {
                send_octets(tunnel, message, MESSAGE);
            } else if (tunnel->state == OPEN && receive(tunnel, chunk, MESSAGE)) {
                keep_sample(now() - tunnel->began);
                /* Close with a reset, which leaves no port in TIME_WAIT: so many would use them up. */
                setsockopt(tunnel->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
                close(tunnel->fd);
                if (begun++ < total)
                    begin(tunnel);
            }
        }
    }
    print_echoes(now() - start);
}

static void run_ping(long streams, double seconds)
{
    struct tunnel *tunnels = open_tunnels(streams);
    double start = now(), time = start;
    done = 0; /* from here on it counts echoes */
    for (long i = 0; i < streams; i++) {
        tunnels[i].began = now();
        send_octets(&tunnels[i], message, MESSAGE);
    }
    for (; time < start + seconds; time = now()) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            struct tunnel *tunnel = events[i].data.ptr;
            if (!receive(tunnel, chunk, MESSAGE))
                continue;
            time = now();
            keep_sample(time - tunnel->began);
            tunnel->began = time;
            send_octets(tunnel, message, MESSAGE);
        }
    }
    print_echoes(time - start);
}

static void run_bulk(bool down, long streams, double seconds)
{
    struct tunnel *tunnels = open_tunnels(streams);
    memset(chunk, down ? SOURCE : SINK, CHUNK);
    double start = now(), time = start;
    for (long i = 0; i < streams; i++) {
        send_octets(&tunnels[i], chunk, 1);
        if (!down)
            watch(EPOLL_CTL_MOD, tunnels[i].fd, EPOLLOUT, (epoll_data_t){.ptr = &tunnels[i]});
    }
    long long octets = 0;
    for (; time < start + seconds; time = now()) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            int fd = ((struct tunnel *)events[i].data.ptr)->fd;
            ssize_t length = down ? recv(fd, chunk, CHUNK, 0) : send(fd, chunk, CHUNK, MSG_NOSIGNAL);
            if (length <= 0 && !would_block(length))
                fail("a tunnel was lost: %s", length ? strerror(errno) : "the server closed it");
            octets += length > 0 ? length : 0;
        }
    }
    if (!down)
        octets = atomic_load(sunk); /* what arrived, not what waits in buffers on the way */
    if (!octets)
        fail("not one octet arrived");
    printf("{\"octets\": %lld, \"seconds\": %.6f}\n", octets, time - start);
}

static void run_idle(long total)
{
    double start = now();
    open_tunnels(total);
    printf("{\"count\": %ld, \"seconds\": %.6f}\n", total, now() - start);
    fflush(stdout);
    while (read(STDIN_FILENO, chunk, CHUNK) > 0)
        continue;
}

int main(int argc, char **argv)
{
    const char *scenario = argc > 3 ? argv[1] : "";
    server_port = argc > 3 ? atoi(argv[2]) : 0;
    start_destination();
    poller = epoll_create1(0);
    if (!strcmp(scenario, "conn") && argc == 5)
        run_conn(atol(argv[3]), atol(argv[4]));
    else if (!strcmp(scenario, "bulk") && argc == 6)
        run_bulk(!strcmp(argv[3], "down"), atol(argv[4]), atof(argv[5]));
    else if (!strcmp(scenario, "ping") && argc == 5)
        run_ping(atol(argv[3]), atof(argv[4]));
    else if (!strcmp(scenario, "idle") && argc == 4)
        run_idle(atol(argv[3]));
    else
        fail("wrong arguments: the top of load.c has them");
    return 0;
}
