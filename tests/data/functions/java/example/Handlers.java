package example;

import java.util.LinkedHashMap;
import java.util.Map;

public class Handlers {
    public interface Context {
        String getAwsRequestId();
        String getFunctionName();
        int getRemainingTimeInMillis();
    }

    public Object echo(Object event) {
        return event;
    }

    public Map<String, Object> introspect(Map<String, Object> event, Context context) {
        Map<String, Object> told = new LinkedHashMap<>();
        told.put("event", event);
        told.put("id", context.getAwsRequestId());
        told.put("name", context.getFunctionName());
        told.put("left", context.getRemainingTimeInMillis());
        told.put("environ", System.getenv());
        return told;
    }

    public Object fails(Object event) {
        throw new IllegalStateException("no such thing");
    }

    public Object hangs(Object event) throws InterruptedException {
        Thread.sleep(60_000);
        return null;
    }

    public String large(Map<String, Integer> event) {
        return "x".repeat(event.get("size"));
    }
}
