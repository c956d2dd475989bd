// Runs Java handlers by the Lambda Runtime API, with nothing but the JDK: what `runtime = "java"` starts, from source.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.StringWriter;
import java.lang.reflect.Constructor;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.Proxy;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import javax.tools.FileObject;
import javax.tools.ForwardingJavaFileManager;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileManager;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;

public final class Bootstrap {
    private static final String API = "http://" + System.getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/";
    private static final Path ROOT = Path.of(System.getenv("LAMBDA_TASK_ROOT"));

    public static void main(String[] arguments) throws Exception {
        System.setProperty("sun.net.http.retryPost", "false"); // an answer is given once
        Handler handler;
        try {
            handler = Handler.load(System.getenv("_HANDLER"));
        } catch (Throwable error) {
            report("init/error", error);
            System.exit(1);
            return;
        }
        while (true) {
            HttpURLConnection next = open("invocation/next");
            if (next.getResponseCode() != 200) throw new IOException("no invocation: " + next.getResponseCode());
            byte[] event = next.getInputStream().readAllBytes();
            String id = next.getHeaderField("Lambda-Runtime-Aws-Request-Id");
            String trace = next.getHeaderField("Lambda-Runtime-Trace-Id");
            if (trace != null) System.setProperty("com.amazonaws.xray.traceHeader", trace);
            byte[] answer;
            try {
                answer = handler.handle(event, next);
            } catch (Throwable error) {
                report("invocation/" + id + "/error", error);
                if (error instanceof VirtualMachineError) System.exit(1); // out of memory, say
                continue;
            }
            post("invocation/" + id + "/response", answer, null);
        }
    }

    private static HttpURLConnection open(String target) throws IOException {
        return (HttpURLConnection) URI.create(API + target).toURL().openConnection();
    }

    private static void post(String target, byte[] body, String errorType) throws IOException {
        HttpURLConnection connection = open(target);
        connection.setRequestMethod("POST");
        connection.setDoOutput(true);
        connection.setFixedLengthStreamingMode(body.length);
        connection.setRequestProperty("Content-Type", "application/json");
        if (errorType != null) connection.setRequestProperty("Lambda-Runtime-Function-Error-Type", errorType);
        try (OutputStream out = connection.getOutputStream()) {
            out.write(body);
        }
        InputStream said = connection.getResponseCode() < 400 ? connection.getInputStream() : connection.getErrorStream();
        if (said != null) said.readAllBytes(); // so that the connection can be used again
    }

    private static void report(String target, Throwable error) throws IOException, Fault {
        error.printStackTrace();
        String type = error instanceof Fault ? ((Fault) error).type : error.getClass().getName();
        List<Object> trace = new ArrayList<>();
        for (StackTraceElement element : error.getStackTrace()) trace.add(element.toString());
        Map<String, Object> told = new LinkedHashMap<>();
        told.put("errorMessage", error.getMessage());
        told.put("errorType", type);
        told.put("stackTrace", trace);
        post(target, Json.write(told).getBytes(StandardCharsets.UTF_8), type);
    }

    /** An error that Lambda has a name for. */
    private static final class Fault extends Exception {
        final String type;

        Fault(String type, String message) {
            super(message, null, false, false);
            this.type = type;
        }
    }

    /** The user's method, and how its parameters are filled. */
    private static final class Handler {
        private final Object instance;
        private final Method method;

        private Handler(Object instance, Method method) {
            this.instance = instance;
            this.method = method;
        }

        /** handler: `package.Class::method`, or `package.Class`, whose method is handleRequest. */
        static Handler load(String handler) throws Throwable {
            String[] parts = handler.split("::", -1);
            if (parts.length > 2 || !parts[0].matches("[\\w$.]+")) {
                throw new Fault("Runtime.MalformedHandlerName", "Bad handler '" + handler + "': it is CLASS::METHOD, as in example.Handler::handleRequest");
            }
            String name = parts.length == 2 ? parts[1] : "handleRequest";
            Class<?> found = find(parts[0]);
            // The most specific: compilers add one that takes mere Objects for what is declared with type parameters.
            Method method = Arrays.stream(found.getMethods())
                .filter(each -> each.getName().equals(name) && !each.isBridge())
                .max(Comparator.comparingInt(Method::getParameterCount))
                .orElseThrow(() -> new Fault("Runtime.HandlerNotFound", found.getName() + " has no public method " + name));
            for (int place = 0; place < method.getParameterCount(); place++) check(method, place);
            method.setAccessible(true);
            try {
                Constructor<?> constructor = found.getDeclaredConstructor();
                constructor.setAccessible(true);
                return new Handler(Modifier.isStatic(method.getModifiers()) ? null : constructor.newInstance(), method);
            } catch (NoSuchMethodException error) {
                throw new Fault("Runtime.HandlerNotFound", found.getName() + " has no constructor without parameters");
            } catch (InvocationTargetException error) {
                throw error.getCause();
            }
        }

        private static void check(Method method, int place) throws Fault {
            Class<?> type = method.getParameterTypes()[place];
            boolean streams = method.getParameterCount() > 1 && method.getParameterTypes()[1] == OutputStream.class;
            boolean fits = place == 0
                ? List.of(Object.class, Map.class, List.class, String.class, Number.class, Boolean.class, InputStream.class).contains(type)
                : type == OutputStream.class ? place == 1 : type.isInterface() && place == (streams ? 2 : 1);
            if (!fits) {
                throw new Fault("Runtime.HandlerNotFound", method + ": nothing fills parameter " + (place + 1)
                    + "; the first is a Map, List, String, Number, Boolean, Object or InputStream, then comes an OutputStream, then an interface of the context's");
            }
        }

        private static Class<?> find(String name) throws Fault {
            try {
                return Class.forName(name);
            } catch (ClassNotFoundException missing) {
                try {
                    return Class.forName(name, true, Sources.compile());
                } catch (ClassNotFoundException | IOException error) {
                    throw new Fault("Runtime.ImportModuleError", "Class not found: " + name + "; it is neither a class nor a source in " + ROOT);
                }
            }
        }

        byte[] handle(byte[] event, HttpURLConnection invocation) throws Throwable {
            Class<?>[] types = method.getParameterTypes();
            Object[] arguments = new Object[types.length];
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            for (int place = 0; place < types.length; place++) {
                if (types[place] == InputStream.class) arguments[place] = new ByteArrayInputStream(event);
                else if (types[place] == OutputStream.class) arguments[place] = out;
                else if (place == 0) arguments[place] = Json.read(new String(event, StandardCharsets.UTF_8));
                else arguments[place] = context(types[place], invocation);
            }
            Object result;
            try {
                result = method.invoke(instance, arguments);
            } catch (InvocationTargetException error) {
                throw withoutOurs(error.getCause());
            } catch (IllegalArgumentException error) {
                throw new Fault("Runtime.InvalidEvent", "the event is no " + types[0].getSimpleName());
            }
            if (Arrays.asList(types).contains(OutputStream.class)) return out.toByteArray();
            return Json.write(result).getBytes(StandardCharsets.UTF_8);
        }

        /** Its trace down to the user's method. */
        private static Throwable withoutOurs(Throwable error) {
            StackTraceElement[] trace = error.getStackTrace();
            int end = trace.length;
            while (end > 0 && !trace[end - 1].getClassName().startsWith("Bootstrap")) end--;
            while (end > 0 && trace[end - 1].getClassName().matches("Bootstrap.*|(java|jdk).*reflect.*")) end--;
            if (end > 0) error.setStackTrace(Arrays.copyOf(trace, end));
            return error;
        }

        /** What answers the getters of Lambda's Context, as an instance of whichever interface the handler has for it. */
        private static Object context(Class<?> type, HttpURLConnection invocation) {
            long deadline = Long.parseLong(invocation.getHeaderField("Lambda-Runtime-Deadline-Ms"));
            Map<String, Object> values = new HashMap<>();
            values.put("getAwsRequestId", invocation.getHeaderField("Lambda-Runtime-Aws-Request-Id"));
            values.put("getInvokedFunctionArn", invocation.getHeaderField("Lambda-Runtime-Invoked-Function-Arn"));
            values.put("getFunctionName", System.getenv("AWS_LAMBDA_FUNCTION_NAME"));
            values.put("getFunctionVersion", System.getenv("AWS_LAMBDA_FUNCTION_VERSION"));
            values.put("getMemoryLimitInMB", Integer.valueOf(System.getenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")));
            values.put("getLogGroupName", System.getenv("AWS_LAMBDA_LOG_GROUP_NAME"));
            values.put("getLogStreamName", System.getenv("AWS_LAMBDA_LOG_STREAM_NAME"));
            return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (proxy, method, arguments) -> switch (method.getName()) {
                case "getRemainingTimeInMillis" -> (int) Math.max(0, deadline - System.currentTimeMillis());
                case "getLogger" -> logger(method.getReturnType());
                case "toString" -> values.toString();
                case "hashCode" -> System.identityHashCode(proxy);
                case "equals" -> proxy == arguments[0];
                default -> values.get(method.getName());
            });
        }

        private static Object logger(Class<?> type) {
            return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (proxy, method, arguments) -> {
                if (arguments == null || arguments.length == 0) return null;
                Object message = arguments[0];
                System.out.println(message instanceof byte[] ? new String((byte[]) message, StandardCharsets.UTF_8) : message);
                return null;
            });
        }
    }

    /** The handler's folder as source: compiled in memory, so that it may be read-only. */
    private static final class Sources extends ClassLoader {
        private final Map<String, ByteArrayOutputStream> classes = new HashMap<>();

        static ClassLoader compile() throws IOException, Fault {
            List<Path> files;
            try (Stream<Path> all = Files.walk(ROOT)) {
                files = all.filter(file -> file.toString().endsWith(".java")).sorted().toList();
            }
            Sources made = new Sources();
            if (files.isEmpty()) return made;
            JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
            var standard = compiler.getStandardFileManager(null, null, StandardCharsets.UTF_8);
            StringWriter said = new StringWriter();
            JavaFileManager manager = new ForwardingJavaFileManager<JavaFileManager>(standard) {
                @Override
                public JavaFileObject getJavaFileForOutput(Location location, String name, JavaFileObject.Kind kind, FileObject sibling) {
                    return new SimpleJavaFileObject(URI.create("memory:///" + name.replace('.', '/') + kind.extension), kind) {
                        @Override
                        public OutputStream openOutputStream() {
                            return made.classes.computeIfAbsent(name, each -> new ByteArrayOutputStream());
                        }
                    };
                }
            };
            List<String> options = List.of("-proc:none", "-classpath", System.getProperty("java.class.path"));
            if (!compiler.getTask(said, manager, null, options, null, standard.getJavaFileObjectsFromPaths(files)).call()) {
                throw new Fault("Runtime.UserCodeSyntaxError", said.toString().strip());
            }
            return made;
        }

        private Sources() {
            super(Bootstrap.class.getClassLoader());
        }

        @Override
        protected Class<?> findClass(String name) throws ClassNotFoundException {
            ByteArrayOutputStream data = classes.get(name);
            if (data == null) throw new ClassNotFoundException(name);
            return defineClass(name, data.toByteArray(), 0, data.size());
        }
    }

    /** JSON as Map, List, String, Number, Boolean and null. */
    private static final class Json {
        private final String text;
        private int at;

        private Json(String text) {
            this.text = text;
        }

        static Object read(String text) {
            Json json = new Json(text);
            Object value = json.value();
            if (json.peek() != 0) throw json.fault();
            return value;
        }

        private char peek() {
            while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
            return at < text.length() ? text.charAt(at) : 0;
        }

        private IllegalArgumentException fault() {
            return new IllegalArgumentException("not JSON, at character " + at);
        }

        private boolean takes(String word) {
            if (!text.startsWith(word, at)) return false;
            at += word.length();
            return true;
        }

        private void take(char wanted) {
            if (peek() != wanted) throw fault();
            at++;
        }

        private Object value() {
            char first = peek();
            if (first == '{') {
                Map<String, Object> found = new LinkedHashMap<>();
                at++;
                while (peek() != '}') {
                    if (!found.isEmpty()) take(',');
                    peek();
                    String key = string();
                    take(':');
                    found.put(key, value());
                }
                at++;
                return found;
            }
            if (first == '[') {
                List<Object> found = new ArrayList<>();
                at++;
                while (peek() != ']') {
                    if (!found.isEmpty()) take(',');
                    found.add(value());
                }
                at++;
                return found;
            }
            if (first == '"') return string();
            if (takes("true")) return Boolean.TRUE;
            if (takes("false")) return Boolean.FALSE;
            if (takes("null")) return null;
            return number();
        }

        private Number number() {
            int start = at;
            while (at < text.length() && "+-0123456789.eE".indexOf(text.charAt(at)) >= 0) at++;
            String word = text.substring(start, at);
            try {
                if (!word.matches("-?\\d+")) return Double.valueOf(word);
                if (word.length() > 18) return new java.math.BigInteger(word);
                long number = Long.parseLong(word);
                if (number == (int) number) return (int) number;
                return number;
            } catch (NumberFormatException error) {
                throw fault();
            }
        }

        private String string() {
            take('"');
            int end = at;
            StringBuilder found = null;
            while (true) {
                if (end >= text.length()) throw fault();
                char each = text.charAt(end);
                if (each == '"') break;
                if (each != '\\') {
                    end++;
                    continue;
                }
                if (found == null) found = new StringBuilder();
                if (end + 1 >= text.length()) throw fault();
                found.append(text, at, end);
                char escaped = text.charAt(end + 1);
                int known = "\"\\/bfnrt".indexOf(escaped);
                if (known >= 0) found.append("\"\\/\b\f\n\r\t".charAt(known));
                else if (escaped == 'u' && end + 6 <= text.length()) found.append((char) Integer.parseInt(text.substring(end + 2, end + 6), 16));
                else throw fault();
                end += escaped == 'u' ? 6 : 2;
                at = end;
            }
            String rest = text.substring(at, end);
            at = end + 1;
            return found == null ? rest : found.append(rest).toString();
        }

        static String write(Object value) throws Fault {
            StringBuilder out = new StringBuilder();
            write(value, out);
            return out.toString();
        }

        private static void write(Object value, StringBuilder out) throws Fault {
            if (value == null || value instanceof Boolean) {
                out.append(value);
            } else if (value instanceof Number) {
                double number = ((Number) value).doubleValue();
                if (Double.isNaN(number) || Double.isInfinite(number)) throw new Fault("Runtime.MarshalError", number + " is no JSON");
                out.append(value);
            } else if (value instanceof CharSequence || value instanceof Character || value instanceof Enum) {
                quote(value.toString(), out);
            } else if (value instanceof Map) {
                String before = "{";
                for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                    out.append(before);
                    quote(String.valueOf(entry.getKey()), out);
                    out.append(':');
                    write(entry.getValue(), out);
                    before = ",";
                }
                out.append(before.equals("{") ? "{}" : "}");
            } else if (value instanceof Collection || value instanceof Object[]) {
                Collection<?> all = value instanceof Collection ? (Collection<?>) value : Arrays.asList((Object[]) value);
                out.append('[');
                String between = "";
                for (Object each : all) {
                    out.append(between);
                    write(each, out);
                    between = ",";
                }
                out.append(']');
            } else {
                throw new Fault("Runtime.MarshalError", "a " + value.getClass().getName() + " is no JSON; return a Map, List, String, Number or Boolean");
            }
        }

        private static void quote(String text, StringBuilder out) {
            out.append('"');
            for (int place = 0; place < text.length(); place++) {
                char each = text.charAt(place);
                if (each == '"' || each == '\\') out.append('\\').append(each);
                else if (each < 0x20 || Character.isSurrogate(each)) out.append(String.format("\\u%04x", (int) each));
                else out.append(each);
            }
            out.append('"');
        }
    }
}
