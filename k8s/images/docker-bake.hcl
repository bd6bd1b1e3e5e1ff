# Builds the images. From the root of the repository:
#   docker buildx bake --file k8s/images/docker-bake.hcl
#   REGISTRY=registry.example/team/ VERSION=1.0.0 docker buildx bake --file k8s/images/docker-bake.hcl --push
# REGISTRY ends with a slash. engine-demo is built only when it is named.

variable "REGISTRY" {
  default = ""
}

variable "VERSION" {
  default = "1.0.0"
}

group "default" {
  targets = ["router", "engine"]
}

target "common" {
  context   = "."
  platforms = ["linux/amd64"]
}

target "router" {
  inherits   = ["common"]
  dockerfile = "k8s/images/router.Dockerfile"
  tags       = ["${REGISTRY}pagestream-router:${VERSION}"]
}

target "engine" {
  inherits   = ["common"]
  dockerfile = "k8s/images/engine.Dockerfile"
  target     = "engine"
  tags       = ["${REGISTRY}pagestream-engine:${VERSION}"]
}

target "engine-demo" {
  inherits   = ["common"]
  dockerfile = "k8s/images/engine.Dockerfile"
  target     = "engine-demo"
  tags       = ["${REGISTRY}pagestream-engine-demo:${VERSION}"]
}
