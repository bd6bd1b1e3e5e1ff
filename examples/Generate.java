import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import java.util.concurrent.TimeUnit;
import pagestream.router.v1.ChatMessage;
import pagestream.router.v1.Chat;
import pagestream.router.v1.GenerateRequest;
import pagestream.router.v1.RouterServiceGrpc;
import pagestream.router.v1.SamplingParams;

/**
 * Asks a router one question and prints the answer as it streams.
 *
 * <p>docs/clients.md says how to build it; Generate [ADDRESS] [QUESTION]
 */
public final class Generate {
  public static void main(String[] args) {
    String address = args.length > 0 ? args[0] : "127.0.0.1:50050";
    String question = args.length > 1 ? args[1] : "introduce yourself";
    GenerateRequest request =
        GenerateRequest.newBuilder()
            .setChat(
                Chat.newBuilder()
                    .addMessages(ChatMessage.newBuilder().setRole("user").setContent(question)))
            .setSamplingParams(
                SamplingParams.newBuilder().setTemperature(0.6f).setMaxTokens(256))
            .build();
    ManagedChannel channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
    try {
      RouterServiceGrpc.newBlockingStub(channel)
          .withDeadlineAfter(60, TimeUnit.SECONDS)
          .generate(request)
          .forEachRemaining(
              response -> {
                System.out.print(response.getText());
                System.out.flush();
              });
      System.out.println();
    } catch (StatusRuntimeException error) {
      System.err.println(address + ": " + error.getMessage());
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }
}
